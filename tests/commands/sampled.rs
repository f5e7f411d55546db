//! How many rows figures are measured on: by a rule that no clock has a part in, and as much as a person asks for.

use super::Place;
use crate::runs::{sae_fails, sae_ok};
use serde_json::Value;

const STEPS: [&str; 6] =
    ["--latents=32", "--k=4", "--steps=40", "--batch-size=100", "--anneal-steps=0", "--early-stop=0"];

fn run(place: &Place, name: &str, more: &[&str]) -> (Value, Vec<u64>, String) {
    let (data, out) = (place.name("data.h5"), place.name(name));
    let told = sae_ok([&["train", &data, "--out", &out], &STEPS[..], more].concat());
    let summary = std::fs::read_to_string(place.path(&format!("{name}/summary.json"))).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let rows = ["train", "val", "test"].map(|part| summary[part]["rows"].as_u64().unwrap());
    (summary, rows.to_vec(), told)
}

fn config(place: &Place, name: &str, key: &str) -> String {
    let text = std::fs::read_to_string(place.path(&format!("{name}/config.toml"))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap();
    line.trim_matches('"').to_owned()
}

#[test]
fn a_short_run_on_many_rows_measures_a_share_of_what_it_trained() {
    let place = Place::with_data(20_000, 16);
    let (summary, rows, told) = run(&place, "auto", &[]);
    // 4,000 rows were trained: the least numbers that say something.
    assert_eq!(
        (config(&place, "auto", "eval-rows"), config(&place, "auto", "final-rows")),
        ("200".into(), "1000".into())
    );
    assert_eq!(rows, [1000, 1000, 1000]);
    let all = ["train", "val", "test"].map(|part| summary["split_rows"][part].as_u64().unwrap());
    assert_eq!(all.iter().sum::<u64>(), 20_000);
    assert!(told.contains(&format!("1000 of {}", all[0])), "{told}");
    let (_, rows, told) = run(&place, "all", &["--final-rows=all"]);
    assert_eq!(rows, all);
    assert!(!told.contains(" of 1") && config(&place, "all", "final-rows") == "all", "{told}");
    // What is measured changes no weight.
    let model = |name: &str| std::fs::read(place.path(&format!("{name}/model.safetensors"))).unwrap();
    let weights = |name: &str| crate::runs::tensors(&place.path(&format!("{name}/model.safetensors")));
    assert!(weights("auto") == weights("all") && model("auto").len() > 1000);
    let (_, rows, _) = run(&place, "some", &["--final-rows=50", "--eval-rows=all"]);
    assert_eq!((rows, config(&place, "some", "eval-rows")), (vec![50, 50, 50], "all".into()));
}

#[test]
fn a_longer_run_measures_more_and_on_few_rows_all() {
    let place = Place::with_data(2000, 16);
    let shown = |more: &[&str]| {
        let data = place.name("data.h5");
        let args = [&["train", &data, "--dry-run", "--json"], &STEPS[..2], more].concat();
        let plan: Value = serde_json::from_str(&sae_ok(args)).unwrap();
        let number = |key: &str| plan["config"][key].as_u64().unwrap();
        (number("eval-rows"), number("final-rows"))
    };
    let long = ["--steps=10000", "--batch-size=500"];
    assert_eq!(shown(&long), (6666, 200_000));
    assert_eq!(shown(&[&long[..], &["--eval-every=100"]].concat()), (1333, 200_000));
    assert_eq!(shown(&["--steps=1000000", "--batch-size=500"]), (20_000, 20_000_000));
    let (summary, rows, told) = run(&place, "run", &["--steps=1000"]);
    assert_eq!(rows.iter().sum::<u64>(), 2000);
    assert!(summary["split_rows"]["val"].as_u64() == Some(rows[1]) && !told.contains(" of 1"), "{told}");
}

#[test]
fn no_rows_are_no_measure() {
    let place = Place::with_data(200, 16);
    let fails = |option: &str| sae_fails(["train", &place.name("data.h5"), option]).1;
    assert!(fails("--final-rows=0").contains("at least 1"));
    assert!(fails("--eval-rows=full").contains("--eval-rows takes a number or `all`"));
    assert!(fails("--batch-size=all").contains("--batch-size takes a number or `full`"));
}
