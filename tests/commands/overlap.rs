//! `sae overlap`.

use super::Place;
use crate::runs::{hdf5_file, sae, sae_fails, sae_ok};
use serde_json::Value;
use std::path::Path;

/// Labels of the ids of `write_data`: even A, odd B, every tenth both, every seventh unknown, from 280 on C.
fn write_labels(path: &Path, rows: usize) {
    let mut text = "id\tnote\tkind\n".to_owned();
    for n in 0..rows {
        let label = match n {
            280.. => "C, rare",
            _ if n % 7 == 0 => "",
            _ if n % 10 == 1 => "A; B",
            _ if n % 2 == 0 => "A",
            _ => "B",
        };
        text += &format!("id{n:04}\tx\t{label}\n");
    }
    std::fs::write(path, text).unwrap();
}

fn place() -> (Place, Vec<String>) {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    write_labels(&place.path("labels.tsv"), 290);
    let args = ["overlap", &place.name("run"), &place.name("data.h5"), "--labels", &place.name("labels.tsv")];
    let args = args.map(str::to_owned).into_iter().chain(["--column=kind".to_owned()]).collect();
    (place, args)
}

fn with(args: &[String], more: &[&str]) -> Vec<String> {
    args.iter().cloned().chain(more.iter().map(|s| (*s).to_owned())).collect()
}

fn json(args: &[String], more: &[&str]) -> Value {
    serde_json::from_str(&sae_ok(with(&with(args, more), &["--json"]))).unwrap()
}

#[test]
fn overlap_counts_every_id_and_compares_the_groups_named() {
    let (place, args) = place();
    let (out, plot) = (place.name("latents.tsv"), place.name("groups.png"));
    let found = json(&args, &["--groups=A,B", "--permutations=200", "--out", &out, "--plot", &plot]);
    // Of 0..280, 40 are multiples of 7; of the others the multiples of 10 plus 1 are in both.
    let both = (0..280).filter(|n| n % 7 != 0 && n % 10 == 1).count();
    let ids = &found["ids"];
    assert_eq!((ids["in_groups"].as_u64(), ids["in_several"].as_u64()), (Some(240), Some(both as u64)));
    assert_eq!(
        (&ids["unlabelled"], &ids["other_labels"], &ids["not_in_table"]),
        (&40.into(), &10.into(), &10.into())
    );
    assert_eq!(
        found["groups"][0]["ids"].as_u64().unwrap() + found["groups"][1]["ids"].as_u64().unwrap(),
        240 + both as u64
    );
    let pair = &found["pairs"][0];
    for name in ["active_a", "active_b", "shared", "jaccard", "share_of_a", "share_of_b"] {
        let p = pair[name]["p"].as_f64().unwrap();
        assert!((2.0 / 201.0..=1.0).contains(&p), "{name} {p}");
        assert!(pair[name]["shuffled_low"].as_f64() <= pair[name]["shuffled_high"].as_f64(), "{name}");
    }
    let table = std::fs::read_to_string(&out).unwrap();
    assert!(table.starts_with("latent\tclass\tactive_in\tshare_A\tmean_A\tshare_B\tmean_B\n"), "{table}");
    let shared = table.lines().filter(|line| line.contains("\tshared\tA;B\t")).count();
    assert_eq!((table.lines().count(), Some(shared as u64)), (65, found["shared_by_all"].as_u64()));
    assert!(std::fs::read(&plot).unwrap().starts_with(b"\x89PNG"));
    let alone = json(&args, &["--groups=A,B", "--permutations=0", "--exclusive"]);
    assert_eq!(
        alone["groups"][0]["ids"].as_u64().unwrap() + alone["groups"][1]["ids"].as_u64().unwrap(),
        240 - both as u64
    );
    assert!(alone["pairs"][0]["jaccard"]["p"].is_null() && alone["pairs"][0]["ids_in_both"] == 0);
}

#[test]
fn the_same_seed_gives_the_same_figures_whatever_the_threads() {
    let (_place, args) = place();
    let run = |threads: &str, seed: &str| json(&args, &["--groups=A,B", threads, seed]);
    let one = run("--threads=1", "--seed=4");
    assert_eq!(one, run("--threads=3", "--seed=4"));
    assert_ne!(one["pairs"], run("--threads=3", "--seed=5")["pairs"]);
}

#[test]
fn all_labels_of_a_column_are_compared_if_none_is_named_and_one_may_hold_a_comma() {
    let (_place, args) = place();
    let all = sae_ok(with(&args, &["--permutations=20"]));
    assert!(all.contains("A and C, rare") && all.contains("B and C, rare"), "{all}");
    assert!(all.contains("40 without a label, 10 not in the table"), "{all}");
    let two = json(&args, &["--groups", "C, rare", "--groups", "A", "--permutations=20"]);
    assert_eq!((&two["groups"][0]["name"], &two["groups"][0]["ids"]), (&"C, rare".into(), &10.into()));
    assert_eq!(two["pairs"].as_array().unwrap().len(), 1);
}

#[test]
fn overlap_tells_what_is_wrong_with_the_labels() {
    let (place, args) = place();
    let fails = |more: &[&str]| sae_fails(with(&args, more));
    let (status, text) = fails(&["--groups=A,Z"]);
    assert!(status == 2 && text.contains("\"Z\"") && text.contains("A, B, C, rare"), "{text}");
    let (status, text) = fails(&["--groups=A"]);
    assert!(status == 2 && text.contains("--groups names 1"), "{text}");
    let (status, text) = fails(&["--groups=A,B", "--threshold=1"]);
    assert!(status == 2 && text.contains("--threshold"), "{text}");
    let (status, text) = fails(&["--groups=A,B", "--out", &place.name("labels.tsv"), "--overwrite"]);
    assert!(status == 2 && text.contains("input"), "{text}");
    std::fs::write(place.path("there.png"), "mine").unwrap();
    let (status, text) = fails(&["--groups=A,B", "--plot", &place.name("there.png")]);
    assert!(status == 2 && text.contains("--plot") && text.contains("--overwrite"), "{text}");
    // A label of the table that no row of the data has.
    let table = std::fs::read_to_string(place.path("labels.tsv")).unwrap();
    std::fs::write(place.path("labels.tsv"), table.clone() + "elsewhere\tx\tD\n").unwrap();
    let (status, text) = fails(&["--groups=A,D"]);
    assert!(status == 2 && text.contains("\"D\"") && text.contains("C, rare (10)"), "{text}");
    std::fs::write(place.path("labels.tsv"), table + "short\n").unwrap();
    let (status, text) = fails(&[]);
    assert!(status == 1 && text.contains("labels.tsv: line 292: has 1 fields"), "{text}");
    std::fs::write(place.path("labels.tsv"), "id\tnote\tkind\nother\t\tA\nmore\t\tB\n").unwrap();
    let (status, text) = fails(&[]);
    assert!(status == 1 && text.contains("\"other\"") && text.contains("\"id0000\""), "{text}");
}

#[test]
fn a_label_holds_for_all_residues_of_a_protein_and_proteins_are_shuffled() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let mut table = "id\tkind\n".to_owned();
    hdf5_file(&place.path("residues.h5"), |file| {
        for p in 0..12usize {
            // Every residue of a protein is the same: it is one observation, however long.
            let row: Vec<f32> = (0..16).map(|i| (((p * 31 + i * 7) % 13) as f32) - 6.0).collect();
            let length = 3 + 5 * (p % 3);
            let set = file.new_dataset::<f32>().shape((length, 16)).create(format!("P{p}").as_str()).unwrap();
            set.write_raw(&row.repeat(length)).unwrap();
            table += &format!("P{p}\t{}\n", if p < 6 { "A" } else { "B" });
        }
    });
    std::fs::write(place.path("residues.tsv"), table).unwrap();
    let args =
        ["overlap", &place.name("run"), &place.name("residues.h5"), "--labels", &place.name("residues.tsv")];
    let found = json(&args.map(str::to_owned), &["--permutations=500", "--threshold=0.01"]);
    for group in 0..2 {
        // Lengths 3, 8 and 13, twice each.
        assert_eq!(
            (&found["groups"][group]["ids"], &found["groups"][group]["rows"]),
            (&6.into(), &48.into())
        );
    }
    // Labels without meaning, told by one residue in a hundred. Were residues shuffled one by one, nearly every protein
    // would have some in either group: the shuffles would share nearly all latents, and so few as these would look rare.
    let jaccard = &found["pairs"][0]["jaccard"];
    assert!(
        jaccard["p"].as_f64().unwrap() > 0.05 && jaccard["shuffled_high"].as_f64().unwrap() < 0.6,
        "{jaccard}"
    );
}

#[test]
fn a_table_that_is_not_there_is_told() {
    let (place, _) = place();
    let missing = place.name("none.tsv");
    let output = sae(["overlap", &place.name("run"), &place.name("data.h5"), "--labels", &missing]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("none.tsv: cannot read"), "{text}");
}
