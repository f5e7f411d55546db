use super::*;
use std::path::Path;

fn table(text: &str) -> LabelTable {
    LabelTable::parse(Path::new("labels.tsv"), text).unwrap()
}

fn options(min_rows: u64) -> LabelOptions {
    LabelOptions { columns: None, min_rows, max_values: 50, unknown: vec!["NA".into()] }
}

/// Ids of so many rows, which are ids themselves.
fn ids(n: usize) -> Vec<[String; 2]> {
    (0..n).map(|i| [format!("P{i}"), format!("P{i}")]).collect()
}

/// The labels of rows, each its own id and that of its group; and the tags of the rows.
fn label(table: &LabelTable, rows: &[[String; 2]], options: &LabelOptions) -> Result<(Labelled, Vec<u32>)> {
    let mut labels = RowLabels::new(table, options)?;
    let tags = rows.iter().map(|[id, group]| labels.row(id, group)).collect::<Result<_>>()?;
    Ok((labels.finish()?, tags))
}

#[test]
fn an_empty_cell_is_unknown_and_another_value_is_a_negative() {
    let mut text = "id\tkind\tmany\n".to_owned();
    for i in 0..60 {
        let kind = ["toxin", "toxin; venom", "", "NA", "enzyme", "rare"][if i == 5 { 5 } else { i % 5 }];
        text += &format!("P{i}\t{kind}\t{i}\n");
    }
    let (labels, tags) = label(&table(&text), &ids(61), &options(3)).unwrap();
    assert_eq!(labels.columns, ["kind"]);
    let total = |of: &[u64; 2]| of[0] + of[1];
    let found: Vec<(&str, u64)> = labels.labels.iter().map(|l| (l.value.as_str(), total(&l.rows))).collect();
    assert_eq!(found, [("toxin", 23), ("enzyme", 12), ("venom", 12)]);
    assert_eq!(total(&labels.known[0]), 36, "12 x toxin, enzyme and both, one of them rare instead");
    assert_eq!((labels.told.rare_values, labels.told.labelled_rows), (1, 60));
    assert_eq!((labels.told.ids_without_labels, labels.told.unknown_ids), (1, 0));
    assert!(labels.told.passed_over[0].why.contains("60 different ones"), "{:?}", labels.told);
    let profile = |row: usize| &labels.profiles[untagged(tags[row]).0 as usize];
    assert_eq!(profile(1), &Profile { columns: vec![0], labels: vec![0, 2] });
    assert_eq!(profile(2), &Profile::default());
    assert_eq!(
        profile(5),
        &Profile { columns: vec![0], labels: vec![] },
        "a rare value is known all the same"
    );
    assert_eq!((profile(60), tags[60]), (&Profile::default(), NO_LINE));
}

#[test]
fn a_column_that_is_named_is_taken_whatever_it_holds() {
    let text = (0..90).fold("id\tlength\n".to_owned(), |text, i| text + &format!("P{i}\t{}\n", i % 30));
    let with = |columns: Option<&str>| {
        let columns = columns.map(|name| vec![name.to_owned()]);
        label(&table(&text), &ids(90), &LabelOptions { columns, ..options(2) }).map(|found| found.0)
    };
    assert!(with(None).unwrap().labels.is_empty());
    assert!(!with(Some("length")).unwrap().labels.is_empty());
    let error = with(Some("size")).unwrap_err();
    assert!(error.to_string().contains("no such column; it has length"), "{error}");
    assert_eq!(error.exit_status(), 2);
}

#[test]
fn columns_without_labels_are_told_with_what_would_help() {
    let mut text = "id\tsame\tnone\ttext\tonce\n".to_owned();
    (0..60).for_each(|i| text += &format!("P{i}\tx\t\tword {i}\t{}\n", ["a", "b"][usize::from(i == 0)]));
    let told = label(&table(&text), &ids(60), &options(10)).unwrap().0.told;
    for (passed, part) in
        told.passed_over.iter().zip(["the same value", "no row", "raise --max-values", "lower --min-rows"])
    {
        assert!(passed.why.contains(part), "{passed:?}");
    }
    assert_eq!(told.passed_over.len(), 4);
}

#[test]
fn a_line_of_an_id_holds_for_all_its_rows_and_that_of_a_row_goes_before_it() {
    let row = |i: usize| [format!("P{}:{}", i / 2, i % 2 + 1), format!("P{}", i / 2)];
    let rows: Vec<[String; 2]> = (0..80).map(row).collect();
    let mut text = "id\tsite\tfamily\n".to_owned();
    for i in 0..40 {
        text += &format!("P{i}\tno\t{}\nP{i}:2\tyes\t\n", ["a", "b"][i % 2]);
    }
    text += "Q\tno\ta\n";
    let (labels, tags) = label(&table(&text), &rows, &options(5)).unwrap();
    let borne = |row: usize| -> Vec<&str> {
        let profile = &labels.profiles[untagged(tags[row]).0 as usize];
        profile.labels.iter().map(|&l| labels.labels[l as usize].value.as_str()).collect()
    };
    assert_eq!((borne(0), borne(1)), (vec!["no", "a"], vec!["yes", "a"]));
    assert_eq!((borne(2), borne(3)), (vec!["no", "b"], vec!["yes", "b"]));
    let second = |row: usize| untagged(tags[row]).1;
    assert!((0..40).all(|i| second(2 * i) == second(2 * i + 1)), "an id is in one half");
    assert!((0..40).all(|i| second(2 * i) == in_second_half(&format!("P{i}"))));
    assert_eq!(labels.told.first_unknown_id.as_deref(), Some("Q"));
    let rows = labels.labels[0].rows;
    assert!(rows[0] > 10 && rows[1] > 10, "{rows:?}: halves of very different size");
}

#[test]
fn a_table_of_other_ids_is_refused_with_an_id_of_each() {
    let error = label(&table("id\tx\nsp|P0|A\ta\n"), &ids(3), &options(1)).unwrap_err().to_string();
    assert!(error.contains("\"sp|P0|A\"") && error.contains("\"P0\""), "{error}");
}
