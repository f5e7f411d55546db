//! Rows that stay in their files and are read in windows.

use super::Place;
use crate::runs::{checkpoints, sae, sae_fails, sae_ok, same_run, tensors, write_residues};
use std::path::Path;

const STEPS: [&str; 6] =
    ["--latents=64", "--k=4", "--steps=300", "--batch-size=100", "--early-stop=0", "--keep-checkpoints=50"];

fn train(place: &Place, out: &str, more: &[&str]) {
    let (data, out) = (place.name("data.h5"), place.name(out));
    sae_ok([&["train", &data, "--out", &out, "--quiet"], &STEPS[..], more].concat());
}

fn summary(run: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(run.join("summary.json")).unwrap()).unwrap()
}

#[test]
fn rows_that_fit_are_in_memory_and_others_give_nearly_as_good_a_model() {
    // 256 KB.
    let place = Place::with_data(4000, 16);
    train(&place, "resident", &[]);
    train(&place, "large", &["--memory=300K"]);
    same_run(&place.path("resident"), &place.path("large"));
    let config = |run: &str| std::fs::read_to_string(place.path(run).join("config.toml")).unwrap();
    assert!(!config("large").contains("memory"));
    train(&place, "streamed", &["--memory=50K"]);
    assert!(config("streamed").contains("memory = \"51200\""), "{}", config("streamed"));
    train(&place, "again", &["--memory=51200", "--threads=1"]);
    same_run(&place.path("streamed"), &place.path("again"));
    let fvu = |run: &str| summary(&place.path(run))["val"]["fvu"].as_f64().unwrap();
    let (resident, streamed) = (fvu("resident"), fvu("streamed"));
    assert!((streamed / resident - 1.0).abs() < 0.1, "{resident} {streamed}");
    let weights = |run: &str| tensors(&place.path(run).join("model.safetensors"));
    assert!(weights("resident") != weights("streamed"));
}

#[test]
fn a_run_goes_on_from_any_checkpoint_to_the_same_bits() {
    let place = Place::with_data(2000, 16);
    train(&place, "whole", &["--memory=20K", "--checkpoint-every=30"]);
    let all = checkpoints(&place.path("whole"));
    // An evaluation between two that is better leaves one more, which depends on the last bits of sums.
    assert!(all.len() >= 10, "{all:?}");
    for last in [0, 4, 8] {
        let out = format!("from{last}");
        train(&place, &out, &["--memory=20K", "--checkpoint-every=30"]);
        let run = place.path(&out);
        for path in &checkpoints(&run)[last + 1..] {
            std::fs::remove_file(path).unwrap();
        }
        for name in ["summary.json", "model.safetensors", "checkpoints/best.safetensors"] {
            std::fs::remove_file(run.join(name)).unwrap();
        }
        // What is known of the rows is found again where it was lost.
        match last {
            0 => assert!(run.join("rows.json").is_file()),
            4 => std::fs::remove_file(run.join("rows.json")).unwrap(),
            _ => std::fs::write(run.join("rows.json"), "{").unwrap(),
        }
        sae_ok(["train", "--resume", &place.name(&out), "--quiet"]);
        let model = |run: &Path| tensors(&run.join("model.safetensors"));
        assert!(model(&run) == model(&place.path("whole")), "{last}");
    }
}

#[test]
fn what_the_first_pass_found_is_taken_from_the_run_folder() {
    let place = Place::with_data(2000, 16);
    train(&place, "run", &["--memory=20K", "--checkpoint-every=30"]);
    let run = place.path("run");
    let fvu = || summary(&run)["val"]["fvu"].as_f64().unwrap();
    let before = fvu();
    let resume = || {
        for name in ["summary.json", "model.safetensors"] {
            std::fs::remove_file(run.join(name)).unwrap();
        }
        sae_ok(["train", "--resume", &place.name("run"), "--quiet"]);
    };
    resume();
    assert_eq!(fvu(), before);
    // Another mean, as no pass would find it: FVU is measured about it.
    let path = run.join("rows.json");
    let mut rows: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    rows["moments"][0]["mean"][0] = 100.0.into();
    std::fs::write(&path, rows.to_string()).unwrap();
    resume();
    assert!(fvu() < before / 2.0, "{} {before}", fvu());
    // A run beside it and one in its place take it too.
    for out in ["beside", "run"] {
        train(&place, out, &["--memory=20K", "--checkpoint-every=30", "--overwrite"]);
        let summary = summary(&place.path(out));
        assert!(summary["val"]["fvu"].as_f64().unwrap() < before / 2.0, "{out}: {summary}");
    }
    std::fs::remove_dir_all(place.path("beside")).unwrap();
    // The file was written to since: what was known holds no longer.
    let data = std::fs::File::options().write(true).open(place.path("data.h5")).unwrap();
    data.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(60)).unwrap();
    resume();
    assert_eq!(fvu(), before);
}

#[test]
fn all_layouts_are_read_in_windows() {
    let place = Place::with_data(10, 4);
    write_residues(&place.path("data.h5"), 60, 40, 12);
    train(&place, "residues", &["--memory=20K"]);
    let files = ["a.npy", "b.npy"].map(|name| place.path(name));
    for (n, file) in files.iter().enumerate() {
        let values: Vec<u8> =
            crate::common::values(600 * 8, n as u32).iter().flat_map(|v| v.to_le_bytes()).collect();
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (600, 8), }";
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16 + 1).to_le_bytes());
        bytes.extend(format!("{header}\n").bytes());
        bytes.extend(values);
        std::fs::write(file, bytes).unwrap();
    }
    let names = files.map(|file| file.to_str().unwrap().to_owned());
    let out = place.name("arrays");
    sae_ok([&["train", &names[0], &names[1], "--out", &out, "--memory=9K"], &STEPS[..]].concat());
    let told = String::from_utf8(
        sae([
            "train",
            &names[0],
            &names[1],
            "--out",
            &place.name("told"),
            "--memory=9K",
            "--steps=1",
            "--latents=64",
        ])
        .stderr,
    )
    .unwrap();
    assert!(told.contains("1200 rows of 8 float32, in their files, 9.00 KiB at a time in memory"), "{told}");
    for run in ["residues", "arrays"] {
        assert!(summary(&place.path(run))["val"]["fvu"].as_f64().unwrap() < 1.0);
        sae_ok(["report", &place.name(run), "--quiet"]);
    }
}

#[test]
fn another_memory_is_another_order_and_named() {
    let place = Place::with_data(2000, 16);
    train(&place, "run", &["--memory=20K", "--checkpoint-every=30"]);
    let run = place.path("run");
    std::fs::remove_file(run.join("summary.json")).unwrap();
    std::fs::remove_file(run.join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    std::fs::write(run.join("config.toml"), config.replace("memory = \"20480\"", "memory = \"40960\""))
        .unwrap();
    let (status, text) = sae_fails(["train", "--resume", &place.name("run")]);
    assert_eq!(status, 2);
    assert!(text.contains("memory 20480 in the checkpoint, 40960 now"), "{text}");
    std::fs::write(run.join("config.toml"), config).unwrap();
    sae_ok(["train", "--resume", &place.name("run"), "--quiet"]);
    for (size, what) in [("8X", "is not a size"), ("0", "is not a size"), ("-1", "is not a size")] {
        let output = sae(["train", &place.name("data.h5"), &format!("--memory={size}")]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(what), "{text}");
    }
}
