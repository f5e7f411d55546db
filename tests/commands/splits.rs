//! Which rows count as training, validation and test rows of a run: those that its `splits.tsv` names.

use super::Place;
use crate::runs::{sae, sae_fails, sae_ok, write_named};
use serde_json::Value;
use std::collections::HashMap;

const UNSEEN: &str = "not trained on";

/// A run; `new.h5` with ids that it has never seen, `mixed.h5` with 40 that it has and 60 that it has not.
fn place() -> Place {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let new = |n: usize| format!("new{n:04}");
    write_named(&place.path("new.h5"), &(0..100).map(new).collect::<Vec<_>>(), 16);
    let mixed = |n: usize| if n < 40 { format!("id{n:04}") } else { new(n) };
    write_named(&place.path("mixed.h5"), &(0..100).map(mixed).collect::<Vec<_>>(), 16);
    place
}

fn eval(place: &Place, model: &str, data: &str, more: &[&str]) -> Vec<Value> {
    let args = ["eval", &place.name(model), &place.name(data), "--json"];
    serde_json::from_str(&sae_ok(args.iter().chain(more))).unwrap()
}

fn rows(results: &[Value]) -> Vec<(&str, u64)> {
    results.iter().map(|r| (r["split"].as_str().unwrap(), r["rows"].as_u64().unwrap())).collect()
}

fn told(args: &[&str]) -> String {
    let output = sae(args);
    assert!(output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// How many of the ids `id0000` to `id0000 + n` the run put into each split.
fn splits(place: &Place, n: usize) -> HashMap<String, u64> {
    let text = std::fs::read_to_string(place.path("run/splits.tsv")).unwrap();
    let mut counts = HashMap::new();
    for line in text.lines().skip(1).take(n) {
        *counts.entry(line.split('\t').nth(1).unwrap().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn rows_that_were_never_trained_on_are_in_no_split() {
    let place = place();
    assert_eq!(rows(&eval(&place, "run", "new.h5", &[])), [("all", 100)]);
    let text = sae_ok(["eval", &place.name("run"), &place.name("new.h5")]);
    assert!(text.contains("no id of these rows is in ") && text.contains("run/splits.tsv"), "{text}");
    assert!(!text.contains("train  ") && !text.contains("test  "), "{text}");
}

#[test]
fn in_mixed_data_the_rows_of_the_run_keep_their_split_and_the_others_are_new() {
    let place = place();
    let counts = splits(&place, 40);
    let mut want: Vec<(&str, u64)> =
        ["train", "val", "test"].iter().filter_map(|s| Some((*s, *counts.get(*s)?))).collect();
    want.extend([("new", 60), ("all", 100)]);
    assert_eq!(rows(&eval(&place, "run", "mixed.h5", &[])), want);
    let text = sae_ok(["eval", &place.name("run"), &place.name("mixed.h5")]);
    assert!(text.contains("new: rows whose ids are not in ") && text.contains("run/splits.tsv"), "{text}");
    // A part of the run's own data.
    let ids: Vec<String> = (0..40).map(|n| format!("id{n:04}")).collect();
    write_named(&place.path("part.h5"), &ids, 16);
    let results = eval(&place, "run", "part.h5", &[]);
    assert!(rows(&results).iter().all(|(split, n)| *split == "all" || counts[*split] == *n), "{results:?}");
}

#[test]
fn the_split_is_that_of_the_run_and_not_of_a_hash() {
    let place = place();
    // As if the run had been given its split by hand: a hash would say something else.
    let table = place.path("run/splits.tsv");
    let text = std::fs::read_to_string(&table).unwrap();
    let swapped =
        text.replace("\ttrain\n", "\tTEST\n").replace("\ttest\n", "\ttrain\n").replace("TEST", "test");
    std::fs::write(&table, swapped).unwrap();
    let counts = splits(&place, 300);
    for result in eval(&place, "run", "data.h5", &[]) {
        let split = result["split"].as_str().unwrap();
        assert_eq!(result["rows"], counts.get(split).copied().unwrap_or(300), "{split}");
    }
    for split in ["train", "test"] {
        let asked = format!("--split={split}");
        assert_eq!(eval(&place, "run", "data.h5", &[&asked])[0]["rows"], counts[split]);
        let args = ["features", &place.name("run"), &place.name("data.h5"), "--json", &asked];
        let features: Value = serde_json::from_str(&sae_ok(args)).unwrap();
        assert_eq!(features["rows"], counts[split]);
    }
}

#[test]
fn a_split_of_rows_that_were_never_trained_on_is_told_by_every_command() {
    let place = place();
    let kind = |n: usize| ["A", "B"][n % 2];
    let lines = (0..300).map(|n| format!("new{n:04}\t{}\nid{n:04}\t{}\n", kind(n), kind(n)));
    std::fs::write(place.path("labels.tsv"), "id\tkind\n".to_owned() + &lines.collect::<String>()).unwrap();
    let (run, out, labels) = (place.name("run"), place.name("out"), place.name("labels.tsv"));
    let page = place.name("page.html");
    let model = place.name("model.safetensors");
    std::fs::copy(place.path("run/model.safetensors"), &model).unwrap();
    for command in [
        &["eval"][..],
        &["encode", "-o", &out, "--overwrite"],
        &["features"],
        &["report", "-o", &page, "--overwrite"],
        &["overlap", "--labels", &labels, "--permutations=0"],
    ] {
        let with = |model: &str, data: &str, more: &[&str]| {
            told(&[&[command[0], model, &place.name(data)][..], &command[1..], more].concat())
        };
        let text = with(&run, "new.h5", &["--split=train"]);
        assert!(text.contains(UNSEEN) && text.contains("run/splits.tsv"), "{command:?}: {text}");
        let text = with(&run, "mixed.h5", &["--split=train"]);
        assert!(text.contains(UNSEEN) && text.contains(" train rows have ids that"), "{command:?}: {text}");
        for (data, split) in [("data.h5", "--split=train"), ("new.h5", "--split=all")] {
            let text = with(&run, data, &[split]);
            assert!(!text.contains("warning: ") || !text.contains("splits.tsv"), "{command:?}: {text}");
        }
        assert_eq!(with(&run, "new.h5", &["--split=train", "--quiet"]), "", "{command:?}");
        if command[0] != "report" {
            let text = with(&model, "data.h5", &["--split=train"]);
            assert!(text.contains("is a model file, not a run folder"), "{command:?}: {text}");
        }
    }
    sae_ok(["report", &run, &place.name("new.h5"), "--split=train", "-o", &page, "--overwrite"]);
    assert!(std::fs::read_to_string(&page).unwrap().contains("the run has never seen them"));
}

#[test]
fn a_model_file_has_no_splits_and_both_kinds_of_dead_latents_are_named() {
    let place = place();
    std::fs::copy(place.path("run/model.safetensors"), place.path("model.safetensors")).unwrap();
    let bare = eval(&place, "model.safetensors", "data.h5", &[]);
    assert_eq!(rows(&bare), [("all", 300)]);
    assert!(bare[0]["dead_on_training_rows"].is_null());
    let text = sae_ok(["eval", &place.name("model.safetensors"), &place.name("data.h5")]);
    assert!(text.contains("has no splits.tsv") && !text.contains("dead on training rows"), "{text}");
    let summary: Value =
        serde_json::from_slice(&std::fs::read(place.path("run/summary.json")).unwrap()).unwrap();
    let results = eval(&place, "run", "data.h5", &[]);
    for result in &results {
        assert_eq!(result["dead_on_training_rows"], summary["dead_fraction"]);
        assert_eq!(result["dead_fraction"], result["dead_on_these_rows"]);
    }
    assert_eq!(results[0]["dead_on_these_rows"], summary["dead_fraction"]);
    let dead = |result: &Value| result["dead_on_these_rows"].as_f64().unwrap();
    assert!(dead(&results[2]) > dead(&results[0]), "few test rows activate fewer latents: {results:?}");
    let text = sae_ok(["eval", &place.name("run"), &place.name("data.h5"), "--split=test"]);
    assert!(text.contains("dead on these rows") && text.contains("dead on training rows: "), "{text}");
    assert!(text.contains("summary.json"), "{text}");
}

/// Ids of each part in a run's table.
fn of_run(place: &Place, run: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(place.path(run).join("splits.tsv")).unwrap();
    let fields = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    text.lines().skip(1).map(fields).map(|f| (f[0].clone(), f[1].clone())).collect()
}

#[test]
fn a_table_of_groups_keeps_them_together_and_a_run_with_one_resumes() {
    let place = Place::with_data(300, 16);
    let lines = |reversed: bool| {
        let line = |n: usize| match reversed {
            true => format!("id{:04}\tid{n:04}\n", n / 9 * 9),
            false => format!("id{n:04}\tg{}\n", n / 9),
        };
        (0..300).map(line).collect::<String>()
    };
    std::fs::write(place.path("groups.tsv"), lines(false)).unwrap();
    std::fs::write(place.path("mmseqs.tsv"), lines(true)).unwrap();
    for table in ["groups", "mmseqs"] {
        let flag = format!("--groups={}", place.name(&format!("{table}.tsv")));
        place.train(table, &[&flag]);
        let parts = of_run(&place, table);
        assert_eq!(parts.len(), 300);
        for pair in parts.chunks(9) {
            assert!(pair.iter().all(|(_, part)| *part == pair[0].1), "{pair:?}");
        }
        sae_ok(["train", "--resume", &place.name(table)]);
        sae_ok(["eval", &place.name(table), &place.name("data.h5")]);
    }
    // Another table is another split: the run is not continued on it.
    std::fs::write(
        place.path("groups.tsv"),
        lines(false).replace("\tg3\n", "\tg4\n").replace("\tg7\n", "\tg8\n"),
    )
    .unwrap();
    let (status, message) = sae_fails(["train", "--resume", &place.name("groups")]);
    assert!(status == 2 && message.contains("splits.tsv is not the split"), "{message}");
}

#[test]
fn a_table_of_splits_is_taken_as_it_is() {
    let place = Place::with_data(300, 16);
    let part = |n: usize| ["train", "train", "valid", "test"][n % 4];
    let lines: String = (0..290).map(|n| format!("id{n:04}\t{}\n", part(n))).collect();
    std::fs::write(place.path("splits.tsv"), format!("id\tsplit\n{lines}")).unwrap();
    let flag = format!("--splits={}", place.name("splits.tsv"));
    place.train("run", &[&flag]);
    let parts = of_run(&place, "run");
    assert_eq!(parts.len(), 290);
    assert!(parts.iter().enumerate().all(|(n, (_, of))| part(n).starts_with(of.as_str())));
    let (status, message) = place.fails(&[&flag, "--group-by=x"]);
    assert!(status == 2 && message.contains("leave out --groups and --group-by"), "{message}");
    let (status, message) = place.fails(&["--group-by=donor"]);
    assert!(status == 1 && message.contains("--group-by"), "{message}");
}
