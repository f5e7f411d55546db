//! `sae features`.

use super::Place;
use crate::runs::{sae, sae_fails, sae_ok, write_residues};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// A table with a header, by column name.
fn table(text: &str) -> Vec<HashMap<String, String>> {
    let mut lines = text.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().unwrap();
    lines
        .map(|fields| {
            assert_eq!(fields.len(), header.len(), "a ragged table");
            header.iter().cloned().zip(fields).collect()
        })
        .collect()
}

fn read(path: &Path) -> Vec<HashMap<String, String>> {
    table(&std::fs::read_to_string(path).unwrap())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Activations by latent and id, as `sae encode` gives them.
fn codes(place: &Place, data: &str) -> HashMap<usize, Vec<(String, f32)>> {
    let out = place.name("codes.tsv");
    sae_ok(["encode", &place.name("run"), data, "-o", &out, "--format=tsv", "--overwrite"]);
    let mut by_latent: HashMap<usize, Vec<(String, f32)>> = HashMap::new();
    for line in read(Path::new(&out)) {
        let entry = (line["id"].clone(), line["value"].parse().unwrap());
        by_latent.entry(line["latent"].parse().unwrap()).or_default().push(entry);
    }
    by_latent
}

#[test]
fn every_latent_has_a_line_with_what_encode_says_of_it() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data) = (place.name("run"), place.name("data.h5"));
    let codes = codes(&place, &data);
    let lines = table(&sae_ok(["features", &run, &data, "--top=3", "--neighbours=2"]));
    assert_eq!(lines.len(), 64);
    for (j, line) in lines.iter().enumerate() {
        assert_eq!(line["latent"], j.to_string());
        let mut rows = codes.get(&j).cloned().unwrap_or_default();
        assert_eq!(line["active_rows"], rows.len().to_string());
        assert_eq!(line["firing_rate"].parse::<f64>().unwrap(), rows.len() as f64 / 300.0);
        assert_eq!(line["neighbours"].split(';').count(), 2);
        rows.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let ids: Vec<String> = rows.iter().take(3).map(|r| r.0.clone()).collect();
        assert_eq!(line["top_ids"], ids.join(";"));
        match rows.first() {
            Some((_, max)) => assert_eq!(line["max_activation"].parse::<f32>().unwrap(), *max),
            None => assert!(line["max_activation"].is_empty() && line["mean_activation"].is_empty()),
        }
    }
    let whole = json(&sae_ok(["features", &run, &data, "--json", "--split=val"]));
    let splits = std::fs::read_to_string(place.path("run/splits.tsv")).unwrap();
    assert_eq!(whole["rows"], splits.lines().filter(|line| line.ends_with("\tval")).count());
    assert_eq!(whole["latents"].as_array().unwrap().len(), 64);
    assert!(whole["labels"].is_null());
}

/// Labels that say which latents of some fire on an id: `fires` names them, `strong` is `yes` where the first of them is
/// at least at its median.
fn labels_from(place: &Place, codes: &HashMap<usize, Vec<(String, f32)>>) -> Vec<usize> {
    let mut often: Vec<usize> =
        codes.keys().copied().filter(|j| (40..200).contains(&codes[j].len())).collect();
    often.sort_unstable();
    let mut values: Vec<f32> = codes[&often[0]].iter().map(|r| r.1).collect();
    values.sort_by(f32::total_cmp);
    let median = values[values.len() / 2];
    let mut text = "id\tfires\tstrong\n".to_owned();
    for n in 0..300 {
        let id = format!("id{n:04}");
        let value = |j: &usize| codes[j].iter().find(|r| r.0 == id).map(|r| r.1);
        let mut fires: Vec<String> =
            often.iter().filter(|j| value(j).is_some()).map(|j| format!("L{j}")).collect();
        fires.push("row".into());
        let strong = if value(&often[0]).is_some_and(|v| v >= median) { "yes" } else { "no" };
        text += &format!("{id}\t{}\t{strong}\n", fires.join("; "));
    }
    std::fs::write(place.path("labels.tsv"), text).unwrap();
    often
}

#[test]
fn a_label_that_is_a_latent_is_found_with_its_latent() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data, out) = (place.name("run"), place.name("data.h5"), place.name("features.tsv"));
    let codes = codes(&place, &data);
    let often = labels_from(&place, &codes);
    let (labels, tests) = (place.name("labels.tsv"), place.name("tests.tsv"));
    let told = sae_ok([
        "features",
        &run,
        &data,
        "--labels",
        &labels,
        "-o",
        &out,
        "--associations",
        &tests,
        "--quiet",
    ]);
    assert!(told.contains("64 latents") && told.contains("q < 0.05"), "{told}");
    let lines = read(&place.path("features.tsv"));
    assert!(often.len() > 2);
    for j in &often {
        let line = &lines[*j];
        let label = if line["label"] == "yes" { "yes".to_owned() } else { format!("L{j}") };
        assert_eq!(line["label"], label);
        for figure in ["precision", "chosen_f1", "auroc"] {
            assert_eq!(line[figure], "1", "{j} {figure}: {line:?}");
        }
        // The threshold is half the lowest activation of the first half: a row of the second may be below it.
        assert!(line["recall"].parse::<f64>().unwrap() > 0.9, "{line:?}");
        assert!(line["q"].parse::<f64>().unwrap() < 1e-3, "{line:?}");
    }
    // A threshold above 0 is found where the label asks for one.
    let tests = read(&place.path("tests.tsv"));
    let strong = tests.iter().find(|t| t["latent"] == often[0].to_string() && t["label"] == "yes").unwrap();
    assert!(strong["chosen_f1"] == "1" && strong["f1"].parse::<f64>().unwrap() > 0.9, "{strong:?}");
    let least = codes[&often[0]].iter().map(|r| r.1).fold(f32::INFINITY, f32::min);
    assert!(strong["threshold"].parse::<f32>().unwrap() > least, "{strong:?}");
    assert!(
        lines
            .iter()
            .any(|line| line["active_rows"] == "0" && line["label"].is_empty() && line["q"].is_empty())
    );
    // Numbers of the summary are those of the table.
    let summary =
        json(&sae_ok(["features", &run, &data, "--labels", &labels, "--json", "-o", &out, "--overwrite"]));
    assert_eq!(summary["labels"]["n_tests"], tests.len());
    let found = tests.iter().filter(|t| t["q"].parse::<f64>().unwrap() < 0.05).count();
    assert_eq!(summary["labels"]["n_found"], found);
    assert_eq!(summary["latents"].as_array().unwrap().len(), 0, "they are in the file");
}

#[test]
fn residues_take_the_label_of_their_protein_or_are_pooled() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data, labels) = (place.name("run"), place.name("residues.h5"), place.name("labels.tsv"));
    write_residues(&place.path("residues.h5"), 60, 5, 16);
    let lines = (0..60).map(|i| format!("P{i:03}\t{}\n", ["a", "b"][i % 2]));
    std::fs::write(&labels, "id\tkind\n".to_owned() + &lines.collect::<String>() + "Q1\ta\n").unwrap();
    let args = ["features", &run, &data, "--labels", &labels, "--json"];
    let rows = json(&sae_ok(args));
    assert_eq!((&rows["rows"], &rows["ids"]), (&300.into(), &60.into()));
    assert_eq!(rows["labels"]["labels"].as_array().unwrap().len(), 2);
    let total = |label: &Value| label["rows"][0].as_u64().unwrap() + label["rows"][1].as_u64().unwrap();
    assert_eq!(total(&rows["labels"]["labels"][0]), 150);
    assert_eq!(
        (&rows["labels"]["unknown_ids"], &rows["labels"]["first_unknown_id"]),
        (&1.into(), &"Q1".into())
    );
    let codes = codes(&place, &data);
    for latent in rows["latents"].as_array().unwrap().iter().filter(|l| l["active_rows"].as_u64() > Some(0)) {
        let top: Vec<&str> =
            latent["top"].as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap()).collect();
        let proteins: std::collections::HashSet<&str> =
            top.iter().map(|id| id.split_once(':').unwrap().0).collect();
        assert_eq!(proteins.len(), top.len(), "a protein is there twice: {top:?}");
    }
    let pooled = json(&sae_ok(args.into_iter().chain(["--pool"])));
    assert_eq!((&pooled["rows"], total(&pooled["labels"]["labels"][0])), (&60.into(), 30));
    for latent in pooled["latents"].as_array().unwrap() {
        let mut best: HashMap<&str, f32> = HashMap::new();
        for (id, value) in codes.get(&(latent["latent"].as_u64().unwrap() as usize)).into_iter().flatten() {
            let most = best.entry(id.split_once(':').unwrap().0).or_default();
            *most = most.max(*value);
        }
        assert_eq!(latent["active_rows"], best.len());
        for top in latent["top"].as_array().unwrap() {
            assert_eq!(top["activation"].as_f64().unwrap() as f32, best[top["id"].as_str().unwrap()]);
        }
    }
    // The same rows are not independent, and a person is told.
    let told =
        |more: &[&str]| String::from_utf8(sae(args.into_iter().chain(more.iter().copied())).stderr).unwrap();
    assert!(
        told(&[]).contains("--pool") && told(&[]).contains("1 ids are not among the rows, the first: Q1")
    );
    assert!(!told(&["--pool"]).contains("--pool"));
}

#[test]
fn the_bits_of_the_tables_do_not_depend_on_the_number_of_threads() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data) = (place.name("run"), place.name("data.h5"));
    labels_from(&place, &codes(&place, &data));
    let bytes = |threads: &str| {
        let out = place.name("tests.tsv");
        let text = sae_ok([
            "features",
            &run,
            &data,
            "--labels",
            &place.name("labels.tsv"),
            "--associations",
            &out,
            "--overwrite",
            threads,
        ]);
        (text, std::fs::read(out).unwrap())
    };
    assert_eq!(bytes("--threads=1"), bytes("--threads=3"));
}

#[test]
fn features_refuses_what_would_lose_a_file_and_labels_that_cannot_be_used() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let (run, data, labels) = (place.name("run"), place.name("data.h5"), place.name("labels.tsv"));
    std::fs::write(&labels, "id\tkind\nid0001\ta\nid0002\n").unwrap();
    let fails = |more: &[&str]| sae_fails(["features", &run, &data].iter().chain(more));
    let (status, text) = fails(&["--labels", &labels]);
    assert!(status == 1 && text.contains("labels.tsv: line 3: has 1 fields, the header 2"), "{text}");
    std::fs::write(&labels, "id\tkind\nid0001\ta\nid0002\ta\n").unwrap();
    let (status, text) = fails(&["--labels", &labels]);
    assert!(status == 1 && text.contains("no label that can be tested (kind: "), "{text}");
    let (status, text) = fails(&["--labels", &labels, "--columns=sort"]);
    assert!(status == 2 && text.contains("no such column"), "{text}");
    for flag in ["--out", "--associations"] {
        let (status, text) = fails(&["--labels", &labels, flag, &labels, "--overwrite"]);
        assert!(status == 2 && text.contains("input") && text.contains(flag), "{text}");
        std::fs::write(place.path("there.tsv"), "mine").unwrap();
        let (status, text) = fails(&["--labels", &labels, flag, &place.name("there.tsv")]);
        assert!(status == 2 && text.contains("--overwrite"), "{text}");
    }
    assert_eq!(std::fs::read(place.path("there.tsv")).unwrap(), b"mine");
    // The command line itself says that these need a table.
    assert_eq!(sae(["features", &run, &data, "--associations", "x.tsv"]).status.code(), Some(2));
}
