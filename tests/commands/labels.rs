//! Tables of labels as people have them, and ids with characters that mean something in a table.

use super::Place;
use crate::runs::{sae, sae_fails, sae_ok, write_named};
use serde_json::Value;
use std::path::Path;

/// A table of genes of the influenza virus, of which one is called NA.
fn genes(rows: usize) -> String {
    let line = |n: usize| format!("id{n:04}\t{}\n", ["HA", "NA", "NP"][n % 3]);
    "id\tgene\n".to_owned() + &(0..rows).map(line).collect::<String>()
}

fn place() -> Place {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    std::fs::write(place.path("labels.tsv"), genes(300)).unwrap();
    place
}

/// A command on the run, its data and labels.
fn args(place: &Place, command: &str, more: &[&str]) -> Vec<String> {
    let labels = format!("--labels={}", place.name("labels.tsv"));
    [command, &place.name("run"), &place.name("data.h5"), &labels]
        .iter()
        .chain(more)
        .map(|s| (*s).to_owned())
        .collect()
}

fn json(args: Vec<String>) -> Value {
    serde_json::from_str(&sae_ok(args)).unwrap()
}

fn told(args: Vec<String>) -> String {
    let output = sae(args);
    assert!(output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// Values of the labels that were tested.
fn tested(found: &Value) -> Vec<&str> {
    found["labels"]["labels"].as_array().unwrap().iter().map(|l| l["value"].as_str().unwrap()).collect()
}

#[test]
fn a_gene_called_na_does_not_vanish_without_a_word() {
    let place = place();
    let warning = "100 cells of the column gene (\"NA\") count as unknown; --keep-na makes them labels";
    let out = place.name("report.html");
    let commands = [
        ("features", vec![]),
        ("report", vec!["-o", &out, "--overwrite"]),
        ("overlap", vec!["--permutations=0"]),
    ];
    for (command, more) in &commands {
        let text = told(args(&place, command, more));
        assert!(text.contains("labels.tsv: ") && text.contains(warning), "{command}: {text}");
        let kept = told(args(&place, command, &[&more[..], &["--keep-na"]].concat()));
        assert!(!kept.contains("unknown"), "{command}: {kept}");
    }
    sae_ok(args(&place, "report", &["-o", &out, "--overwrite"]));
    let html = std::fs::read_to_string(&out).unwrap();
    assert!(html.contains("100 cells of the column gene"));
    assert!(!html.contains("> NA<"), "an unknown cell is shown as the label of an id");
    let found = json(args(&place, "features", &["--json"]));
    assert_eq!(tested(&found), ["HA", "NP"]);
    let unknown = &found["labels"]["unknown_cells"][0];
    assert_eq!(
        (&unknown["column"], &unknown["cells"], &unknown["values"]),
        (&"gene".into(), &100.into(), &serde_json::json!(["NA"]))
    );
    assert_eq!(tested(&json(args(&place, "features", &["--json", "--keep-na"]))), ["HA", "NA", "NP"]);
    assert_eq!(tested(&json(args(&place, "features", &["--json", "--unknown=NP"]))), ["HA", "NA"]);
    let groups = |found: &Value| -> Vec<String> {
        let groups = found["groups"].as_array().unwrap();
        groups.iter().map(|g| g["name"].as_str().unwrap().to_owned()).collect()
    };
    let found = json(args(&place, "overlap", &["--json", "--permutations=0"]));
    assert_eq!(
        (groups(&found), &found["unknown_cells"][0]["cells"]),
        (vec!["HA".into(), "NP".into()], &100.into())
    );
    // Who names it means the label.
    let found = json(args(&place, "overlap", &["--json", "--permutations=0", "--groups=NA,HA"]));
    assert_eq!(
        (groups(&found), &found["unknown_cells"]),
        (vec!["NA".into(), "HA".into()], &serde_json::json!([]))
    );
}

#[test]
fn a_column_that_has_one_label_beside_na_is_told_why() {
    let place = place();
    std::fs::write(place.path("labels.tsv"), genes(300).replace("NP", "NA")).unwrap();
    for command in ["features", "overlap", "report"] {
        let (_, text) = sae_fails(args(&place, command, &[]));
        assert!(text.contains("200 cells of the column gene") && text.contains("--keep-na"), "{text}");
    }
}

#[test]
fn tables_as_r_and_pandas_write_them_give_the_figures_of_the_plain_table() {
    let place = place();
    let plain = genes(300).replace("NA", "NB");
    let figures = |text: &str| {
        std::fs::write(place.path("labels.tsv"), text).unwrap();
        let features = sae_ok(args(&place, "features", &[]));
        (features, json(args(&place, "overlap", &["--json", "--permutations=20"])))
    };
    let want = figures(&plain);
    let quoted: String = plain
        .lines()
        .map(|line| line.split('\t').map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join("\t") + "\n")
        .collect();
    let row_names = quoted.replacen("\"id\"\t", "", 1);
    let crlf = format!("\u{feff}{}", plain.replace('\n', "\r\n"));
    for text in [&quoted, &row_names, &quoted.replace('\n', "\r\n"), &crlf] {
        assert_eq!(figures(text), want, "{}", &text[..40]);
    }
}

#[test]
fn tables_that_cannot_be_read_are_refused_with_the_command_that_helps() {
    let place = place();
    let plain = genes(300);
    let utf16: Vec<u8> = format!("\u{feff}{plain}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let numbered = |n: usize| format!("\"{}\"\t\"id{n:04}\"\t\"{}\"\n", n + 1, n % 2);
    let numbered = (0..300).map(numbered).collect::<String>();
    for (bytes, words) in [
        (plain.replace('\n', "\r").into_bytes(), vec!["CR alone", "tr '\\r' '\\n' < "]),
        (utf16, vec!["UTF-16", "iconv -f UTF-16 -t UTF-8 "]),
        (plain.replace('\t', ",").into_bytes(), vec!["separated by \",\"", "python3 -c"]),
        (plain.replace("id0003\tHA", "id0003\t\"HA").into_bytes(), vec!["line 5", "field 2 is not closed"]),
        (plain.replace("HA", "\"a \\\"b\\\"\"").into_bytes(), vec!["line 2", "qmethod = \"double\""]),
        (plain.replace("id", "P").into_bytes(), vec!["\"P0000\"", "\"id0000\""]),
        (
            format!("\"name\"\t\"gene\"\n{numbered}").into_bytes(),
            vec!["\"1\"", "\"id0000\"", "row.names = FALSE"],
        ),
    ] {
        std::fs::write(place.path("labels.tsv"), bytes).unwrap();
        for command in ["features", "overlap"] {
            let more: &[&str] = if command == "overlap" { &["--column=gene"] } else { &[] };
            let (status, text) = sae_fails(args(&place, command, more));
            assert!(status == 1 && text.contains("labels.tsv: "), "{text}");
            assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
        }
    }
    // What a message says to do is what helps.
    std::fs::write(place.path("labels.tsv"), plain.replace('\n', "\r")).unwrap();
    let (_, text) = sae_fails(args(&place, "features", &[]));
    let command = text.split('`').nth(1).unwrap();
    assert!(std::process::Command::new("sh").args(["-c", command]).status().unwrap().success());
    assert_eq!(std::fs::read_to_string(place.path("labels.lf.tsv")).unwrap(), plain);
}

#[test]
fn ids_and_labels_with_separators_and_quotes_come_back_from_every_table() {
    let place = Place::with_data(10, 16);
    let kinds = ["a;b", "50%", "%3B", "\"q", "say \"hi\"", "x,y", "it's"];
    let ids: Vec<String> = (0..300).map(|n| format!("{}{n}", kinds[n % kinds.len()])).collect();
    write_named(&place.path("data.h5"), &ids, 16);
    place.train("run", &[]);
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let values = ["tab\there", "line\nbreak", "semi%3Bcolon", "\"quoted\""];
    let lines = ids.iter().enumerate().map(|(n, id)| format!("{}\t{}\n", quoted(id), quoted(values[n % 4])));
    std::fs::write(
        place.path("labels.tsv"),
        "id\t\"a \"\"column\"\"\"\n".to_owned() + &lines.collect::<String>(),
    )
    .unwrap();
    let table = |path: &Path| -> (csv::StringRecord, Vec<csv::StringRecord>) {
        let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_path(path).unwrap();
        (reader.headers().unwrap().clone(), reader.records().map(Result::unwrap).collect())
    };
    let (_, splits) = table(&place.path("run/splits.tsv"));
    assert!(splits.iter().map(|r| &r[0]).eq(ids.iter()), "splits.tsv");
    let codes = place.name("codes.tsv");
    sae_ok(["encode", &place.name("run"), &place.name("data.h5"), "--format=tsv", "-o", &codes]);
    let (_, codes) = table(Path::new(&codes));
    let mut found: Vec<&str> = codes.iter().map(|r| &r[0]).collect();
    found.dedup();
    assert!(ids.iter().filter(|id| found.contains(&id.as_str())).eq(found.iter()), "codes.tsv");
    let (out, tests) = (place.name("features.tsv"), place.name("tests.tsv"));
    let more = ["-o", &out, "--associations", &tests, "--top=300", "--json"];
    let summary = json(args(&place, "features", &more));
    let labels = ["tab\there", "line\nbreak", "semi;colon", "\"quoted\""];
    assert!(labels.iter().all(|label| tested(&summary).contains(label)), "{summary}");
    let (header, features) = table(Path::new(&out));
    let whole = json(args(&place, "features", &["--top=300", "--json"]));
    let column = |name: &str| header.iter().position(|field| field == name).unwrap();
    for (line, latent) in features.iter().zip(whole["latents"].as_array().unwrap()) {
        let top: Vec<&str> =
            latent["top"].as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap()).collect();
        let field = &line[column("top_ids")];
        let undone: Vec<String> = match field {
            "" => vec![],
            field => field.split(';').map(|id| id.replace("%3B", ";").replace("%25", "%")).collect(),
        };
        assert_eq!(undone, top, "{field}");
        if !latent["best"].is_null() {
            assert_eq!(line[column("label")], *latent["best"]["label"].as_str().unwrap());
            assert_eq!(&line[column("column")], "a \"column\"");
        }
    }
    let (_, tests) = table(Path::new(&tests));
    assert!(tests.iter().all(|test| labels.contains(&&test[2]) && &test[1] == "a \"column\""));
    let out = place.name("latents.tsv");
    let found = json(args(&place, "overlap", &["--permutations=0", "-o", &out, "--json"]));
    let (header, latents) = table(Path::new(&out));
    for (i, group) in found["groups"].as_array().unwrap().iter().enumerate() {
        let name = group["name"].as_str().unwrap();
        assert_eq!(header[3 + 2 * i], format!("share_{name}"));
        let active = latents.iter().filter(|line| {
            line[2].split(';').any(|text| text.replace("%3B", ";").replace("%25", "%") == name)
        });
        assert_eq!(group["active"], active.count(), "{name:?}");
    }
}
