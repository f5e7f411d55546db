//! Figures that are not finite: the run ends with a model, and everything that it stored is read again.

use crate::runs::{self, checkpoints, low_rank, sae, sae_ok, same_run, write_values};
use std::path::Path;
use topk_sae::rows::{Part, part_of_id};

const D: usize = 12;
const SHORT: [&str; 7] = [
    "--latents=48",
    "--k=4",
    "--steps=80",
    "--anneal-steps=20",
    "--eval-every=10",
    "--checkpoint-every=10",
    "--batch-size=32",
];

/// Rows with their ids; `change` is given each row of a split.
fn data_with(path: &Path, part: Part, mut change: impl FnMut(usize, &mut [f32])) -> Vec<String> {
    let ids: Vec<String> = (0..200).map(|n| format!("id{n:03}")).collect();
    let mut values = low_rank(ids.len(), D);
    let of_part = ids.iter().zip(values.chunks_exact_mut(D)).filter(|(id, _)| part_of_id(id, 0) == part);
    let mut changed = vec![];
    for (n, (id, row)) in of_part.enumerate() {
        change(n, row);
        changed.push(id.clone());
    }
    write_values(path, &ids, &values);
    changed
}

/// Trains with warnings shown; what standard error said.
fn train(data: &str, out: &str, more: &[&str]) -> String {
    let output = sae([&["train", data, "--out", out], &SHORT[..], more].concat());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{more:?}: {text}");
    text
}

/// Everything that reads a run reads this one.
fn is_read_by_every_command(run: &str, data: &str) {
    let of = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&sae_ok([args, &["--json"]].concat())).unwrap()
    };
    assert!(of(&["eval", run, data]).as_array().unwrap().len() == 4);
    assert!(of(&["compare", run, run])[0]["finished"].as_bool().unwrap());
    of(&["inspect", run]);
    let page = format!("{run}/report.html");
    let _ = std::fs::remove_file(&page);
    // A row that no model has a code for stops the report; then it names the row.
    let report = sae(["report", run, "--split=train"]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    // The end of the run once more: every stored figure is read.
    std::fs::remove_file(format!("{run}/summary.json")).unwrap();
    sae_ok(["train", "--resume", run]);
    assert!(Path::new(run).join("summary.json").is_file());
}

fn warnings(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("warning: ")).collect()
}

#[test]
fn validation_rows_without_variance_are_named_and_the_last_model_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let data = path("data.h5");
    // All rows are one row: nothing varies about the mean.
    let ids: Vec<String> = (0..200).map(|n| format!("id{n:03}")).collect();
    let row: Vec<f32> = (0..D).map(|i| 0.1 + 0.37 * i as f32).collect();
    write_values(Path::new(&data), &ids, &row.repeat(ids.len()));
    for (name, more) in [("stop", "--early-stop=2"), ("all", "--early-stop=0"), ("raw", "--no-normalize")] {
        let out = path(name);
        let text = train(&data, &out, &[more]);
        let told = warnings(&text);
        assert!(told.iter().any(|w| w.contains("validation rows have no variance")), "{text}");
        assert!(told.iter().filter(|w| w.contains("validation")).count() == 1, "told more than once: {text}");
        let summary = std::fs::read_to_string(format!("{out}/summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        assert!(summary["val"]["fvu"].is_null() && summary["best_step"].is_null(), "{summary}");
        assert_eq!(summary["steps"], 80, "no figure was there to stop by");
        is_read_by_every_command(&out, &data);
    }
}

#[test]
fn a_row_that_makes_a_figure_infinite_is_named_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (part, place, name) in [(Part::Val, 3, "validation"), (Part::Test, 0, "test")] {
        for (kind, value) in [("largest", f32::MAX), ("signs", -3e38)] {
            let data = path(&format!("{name}-{kind}.h5"));
            let ids = data_with(Path::new(&data), part, |n, row| {
                if n == place {
                    row.iter_mut()
                        .enumerate()
                        .for_each(|(i, x)| *x = if i % 3 == 0 { -value } else { value });
                }
            });
            let out = path(&format!("{name}-{kind}"));
            let text = train(&data, &out, &["--no-normalize", "--early-stop=3"]);
            let told = warnings(&text);
            let named = |w: &&&str| w.contains(&ids[place]) && w.contains(&data) && w.contains(name);
            assert_eq!(told.iter().filter(named).count(), 1, "{text}");
            is_read_by_every_command(&out, &data);
            let evaluated = sae(["eval", &out, &data]);
            let text = String::from_utf8(evaluated.stderr).unwrap();
            assert!(evaluated.status.success() && text.contains(&ids[place]), "{text}");
        }
    }
}

#[test]
fn a_run_whose_validation_is_not_finite_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, whole, cut) = (path("data.h5"), path("whole"), path("cut"));
    data_with(Path::new(&data), Part::Val, |n, row| {
        if n == 0 {
            row.fill(f32::MAX);
        }
    });
    let options = ["--no-normalize", "--early-stop=2", "--keep-checkpoints=9"];
    train(&data, &whole, &options);
    train(&data, &cut, &options);
    let made = checkpoints(Path::new(&cut));
    assert_eq!(made.len(), 8);
    for path in &made[3..] {
        std::fs::remove_file(path).unwrap();
    }
    sae_ok(["train", "--resume", &cut]);
    // No evaluation was the best, in both alike.
    for run in [&whole, &cut] {
        let run = Path::new(run);
        assert!(!run.join("checkpoints/best.safetensors").exists());
        std::fs::copy(checkpoints(run).last().unwrap(), run.join("checkpoints/best.safetensors")).unwrap();
    }
    same_run(Path::new(&whole), Path::new(&cut));
}

/// A checkpoint's header with `best` as version 0.1.0 left it, and its sum.
fn with_best(path: &Path, best: &str) {
    let bytes = std::fs::read(path).unwrap();
    let (n, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let header = metadata.metadata().as_ref().unwrap()["checkpoint"].clone();
    let json = header.split_once(' ').unwrap().1;
    let mut value: serde_json::Value = serde_json::from_str(json).unwrap();
    value["progress"]["best"] = serde_json::from_str(best).unwrap();
    value["progress"]["waited"] = 7.into();
    let json = value.to_string();
    let header = format!("{:08x} {json}", crc32fast::hash(json.as_bytes()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let metadata = std::collections::HashMap::from([("checkpoint".to_owned(), header)]);
    assert!(n > 0);
    let whole = safetensors::serialize(file.tensors(), Some(metadata)).unwrap();
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, whole).unwrap();
}

#[test]
fn a_checkpoint_whose_best_figure_is_null_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("data.h5"), path("run"));
    data_with(Path::new(&data), Part::Val, |_, _| ());
    train(&data, &out, &["--early-stop=3"]);
    let best = Path::new(&out).join("checkpoints/best.safetensors");
    let all = checkpoints(Path::new(&out));
    for path in &all[..all.len() - 1] {
        std::fs::remove_file(path).unwrap();
    }
    with_best(all.last().unwrap(), "[40, null]");
    std::fs::remove_file(&best).unwrap();
    std::fs::remove_file(format!("{out}/model.safetensors")).unwrap();
    sae_ok(["train", "--resume", &out]);
    assert!(!runs::tensors(&Path::new(&out).join("model.safetensors")).is_empty());
}
