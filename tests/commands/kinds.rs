//! The activations without places per row, and prefixes, through every command.

use super::{Place, json};
use crate::common::values;
use crate::runs::{checkpoints, metrics, sae_fails, sae_ok, tensors, write_values};
use std::path::{Path, PathBuf};

/// Options of each kind.
const KINDS: [(&str, &[&str]); 5] = [
    ("batch-topk", &["--activation=batch-topk"]),
    ("jumprelu", &["--activation=jumprelu"]),
    ("relu", &["--activation=relu"]),
    ("matryoshka", &["--prefixes=8,24"]),
    (
        "both",
        &[
            "--activation=batch-topk",
            "--prefixes=auto",
            "--aux-k=4",
            "--unit-norm-decoder=true",
            "--clip-norm=1",
        ],
    ),
];

fn train(place: &Place, out: &str, more: &[&str]) {
    let (data, out) = (place.name("data.h5"), place.name(out));
    let common = ["--latents=64", "-k=4", "--steps=400", "--batch-size=64", "--quiet", "--eval-rows=all"];
    sae_ok([&["train", &data, "--out", &out], &common[..], more].concat());
}

#[test]
fn each_kind_has_k_active_latents_on_rows_it_was_not_trained_on_and_evaluates_row_by_row() {
    let place = Place::with_data(1200, 16);
    for (name, options) in KINDS {
        train(&place, name, options);
        let summary = json(&place.path(name).join("summary.json"));
        for (split, within) in [("val", 0.05), ("test", 0.3)] {
            let l0 = summary[split]["l0"].as_f64().unwrap();
            assert!((l0 / 4.0 - 1.0).abs() < within, "{name}: {split} L0 {l0}");
        }
        // So few latents and steps are little for L1, which shrinks what it keeps.
        let worst = if name == "relu" { 1.0 } else { 0.3 };
        assert!(summary["val"]["fvu"].as_f64().unwrap() < worst, "{name}: {summary}");
        // The figures of the run are those of its model file, by other batches.
        let run = place.name(name);
        let text = sae_ok(["eval", &run, &place.name("data.h5"), "--split", "test", "--json"]);
        let evaluated: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (got, want) = (&evaluated[0], &summary["test"]);
        assert_eq!(got["l0"], want["l0"], "{name}");
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
        assert!(near(got["fvu"].as_f64().unwrap(), want["fvu"].as_f64().unwrap()), "{name}: {got} {want}");
        let prefixes = got["fvu_by_prefix"].as_array().map_or(0, Vec::len);
        assert_eq!(
            prefixes,
            if options.iter().any(|o| o.starts_with("--prefixes")) { prefixes.max(3) } else { 0 }
        );
        // Codes: rows as long as they have active latents, above the threshold.
        let codes = place.path(&format!("{name}.h5"));
        sae_ok(["encode", &run, &place.name("data.h5"), "-o", codes.to_str().unwrap(), "--split", "test"]);
        let file = hdf5::File::open(&codes).unwrap();
        let inference: hdf5::types::VarLenUnicode = file.attr("inference").unwrap().read_scalar().unwrap();
        let fixed = name == "matryoshka";
        let want_inference = if fixed {
            "topk"
        } else if name == "relu" {
            "relu"
        } else {
            "threshold"
        };
        assert_eq!(inference.as_str(), want_inference);
        if !fixed {
            let ends: Vec<u64> = file.dataset("indptr").unwrap().read_raw().unwrap();
            let l0 = *ends.last().unwrap() as f64 / (ends.len() - 1) as f64;
            assert!((l0 - want["l0"].as_f64().unwrap()).abs() < 1e-9, "{name}");
            let lengths: Vec<u64> = ends.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(lengths.iter().min() < lengths.iter().max(), "{name}: all rows have as many");
        }
    }
    let runs: Vec<String> = KINDS.iter().map(|(name, _)| place.name(name)).collect();
    let table = sae_ok([&["compare".to_owned()], &runs[..]].concat());
    for kind in ["batch-topk ", "jumprelu ", "relu ", "topk, prefixes", "batch-topk, prefixes"] {
        assert!(table.contains(kind), "{kind}: {table}");
    }
    for (name, _) in KINDS {
        let (run, data) = (place.name(name), place.name("data.h5"));
        sae_ok(["features", &run, &data, "-o", &place.name(&format!("{name}.tsv")), "--quiet"]);
        sae_ok(["report", &run, &data, "--quiet"]);
        let page = std::fs::read_to_string(place.path(name).join("report.html")).unwrap();
        let by_prefix = ["matryoshka", "both"].contains(&name);
        assert_eq!(page.contains("FVU by the first latents"), by_prefix, "{name}");
    }
    assert!(sae_ok(["inspect", &place.name("both")]).contains("batch-topk, k = 4"));
}

#[test]
fn each_kind_goes_on_to_the_same_bits() {
    let place = Place::with_data(400, 16);
    for (name, options) in KINDS {
        let options = [options, &["--early-stop=0", "--checkpoint-every=100", "--eval-every=70"]].concat();
        train(&place, name, &options);
        let cut = format!("{name} cut");
        train(&place, &cut, &options);
        let run = place.path(&cut);
        for path in checkpoints(&run).into_iter().skip(1) {
            std::fs::remove_file(path).unwrap();
        }
        for file in ["model.safetensors", "summary.json"] {
            std::fs::remove_file(run.join(file)).unwrap();
        }
        sae_ok(["train", "--resume", &place.name(&cut), "--quiet"]);
        let whole = place.path(name);
        assert_eq!(metrics(&whole), metrics(&run), "{name}");
        for file in [PathBuf::from("model.safetensors"), checkpoints(&whole).pop().unwrap()] {
            let file = file.strip_prefix(&whole).unwrap_or(&file).to_owned();
            assert!(tensors(&whole.join(&file)) == tensors(&run.join(&file)), "{name}: {}", file.display());
        }
    }
}

#[test]
fn thresholds_find_back_from_above_all_scores() {
    // Three groups far apart: with a small k the first steps take all scores below the thresholds and their kernels, where no
    // gradient brings them back.
    let (n, d) = (600, 128);
    let place = Place { folder: tempfile::tempdir().unwrap() };
    let [centres, factors, basis, noise] =
        [(3 * d, 1), (n * 6, 2), (6 * d, 3), (n * d, 4)].map(|(len, seed)| values(len, seed));
    let value = |at: usize| {
        let (row, i) = (at / d, at % d);
        let low: f32 = (0..6).map(|r| factors[row * 6 + r] * basis[r * d + i]).sum();
        centres[row % 3 * d + i] + 0.2 * low + 0.02 * noise[at]
    };
    let ids: Vec<String> = (0..n).map(|row| format!("id{row}")).collect();
    write_values(&place.path("data.h5"), &ids, &(0..n * d).map(value).collect::<Vec<_>>());
    for penalty in ["l0-target", "l0-rows"] {
        let run = place.name(penalty);
        let options =
            ["--latents=256", "-k=4", "--steps=200", "--batch-size=128", "--eval-every=50", "--quiet"];
        let kind = ["--activation=jumprelu", &format!("--penalty={penalty}")];
        sae_ok([&["train", &place.name("data.h5"), "--out", &run], &options[..], &kind].concat());
        let mut table = csv::Reader::from_path(Path::new(&run).join("metrics.csv")).unwrap();
        let column = table.headers().unwrap().iter().position(|name| name == "train_l0").unwrap();
        // The validation rows have k by their calibration; the training rows show whether the model was trained with them.
        let l0: Vec<f64> = table.records().map(|line| line.unwrap()[column].parse().unwrap()).collect();
        assert!(l0.len() == 4 && l0.iter().all(|l0| (2.0..6.0).contains(l0)), "{penalty}: {l0:?}");
        let summary = json(&place.path(penalty).join("summary.json"));
        assert!(summary["val"]["fvu"].as_f64().unwrap() < 0.1, "{penalty}: {summary}");
    }
}

#[test]
fn a_prefix_can_be_encoded_alone() {
    let place = Place::with_data(300, 16);
    train(&place, "run", &["--activation=batch-topk", "--prefixes=8,24"]);
    let (run, data) = (place.name("run"), place.name("data.h5"));
    let lines = |prefix: &[&str]| -> Vec<String> {
        let out = place.name("codes.tsv");
        sae_ok([&["encode", &run, &data, "-o", &out, "--format", "tsv", "--overwrite"], prefix].concat());
        std::fs::read_to_string(&out).unwrap().lines().map(str::to_owned).collect()
    };
    let all = lines(&[]);
    let latent = |line: &String| line.split('\t').nth(1).unwrap().parse::<usize>().ok();
    for (number, latents) in [("1", 8), ("2", 24), ("3", 64)] {
        let first: Vec<String> =
            all.iter().filter(|line| latent(line).is_none_or(|j| j < latents)).cloned().collect();
        assert_eq!(lines(&["--prefix", number]), first, "{number}");
        assert!(first.len() > 1);
    }
    for (number, run) in [("0", &run), ("4", &run)] {
        let (status, text) = sae_fails(["encode", run, &data, "-o", &place.name("x.h5"), "--prefix", number]);
        assert!(status == 2 && text.contains("give --prefix 1 to 3"), "{text}");
    }
    train(&place, "plain", &[]);
    let (status, text) =
        sae_fails(["encode", &place.name("plain"), &data, "-o", &place.name("x.h5"), "--prefix", "1"]);
    assert!(status == 2 && text.contains("has no prefixes"), "{text}");
}

#[test]
fn combinations_that_make_no_sense_are_refused_by_name() {
    let place = Place::with_data(100, 8);
    for (options, told) in [
        (&["--activation=jumprelu", "--relaxation=lapsum"][..], "--activation jumprelu has no relaxed form"),
        (&["--activation=batch-topk", "--relaxation=softmax"], "give --relaxation anneal-k"),
        (&["--activation=relu", "--inference=topk"], "--inference topk makes no codes of --activation relu"),
        (&["--activation=batch-topk", "--inference=relu"], "leave --inference out"),
        (&["--activation=jumprelu", "--l1=0.1"], "give --l0-weight"),
        (&["--activation=jumprelu", "--penalty=l1"], "give l0-target, l0 or l0-rows"),
        (&["--penalty=l0"], "--penalty l0 does not go with --activation topk"),
        (&["--bandwidth=0.1"], "--bandwidth belongs to --activation jumprelu"),
        (&["--activation=relu", "--l0-weight=2"], "--l0-weight belongs to --activation jumprelu"),
        (&["--prefixes=8", "--relaxation=softmax"], "--prefixes do not go with --relaxation softmax"),
        (&["--latents=64", "--prefixes=65"], "goes beyond the 64 latents"),
        (&["--latents=64", "--prefixes=64"], "give between 2 and 16"),
    ] {
        let (status, text) = place.fails(options);
        assert!(status == 2 && text.contains(told), "{options:?}: {text}");
    }
    assert!(!Path::new(&place.path("fails")).exists());
}
