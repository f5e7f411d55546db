//! Training does not depend on the data's unit, except in the presets that repeat published models.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/runs.rs"]
mod runs;

use runs::{sae, sae_ok, tensors};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use topk_sae::data::{Embeddings, LoadOptions};
use topk_sae::run::outputs::Summary;

/// The sample proteins times `unit`, as one float32 matrix.
fn data(place: &TempDir, unit: f64) -> String {
    data_with(place, unit, |_, _| ())
}

/// The same, after `change` to each row, whose number it is given.
fn data_with(place: &TempDir, unit: f64, change: impl Fn(usize, &mut [f32])) -> String {
    let sample = common::folder("SAE_EXAMPLES", "examples/data").join("prott5_uniprot_3ftx.h5");
    let rows = Embeddings::load(&[sample], &LoadOptions::default()).unwrap();
    let (n, d) = (rows.n_rows(), rows.d_in());
    let mut values = vec![0.0f32; n * d];
    for (row, out) in values.chunks_exact_mut(d).enumerate() {
        rows.row_into(row, out);
        out.iter_mut().for_each(|v| *v = (f64::from(*v) * unit) as f32);
        change(row, out);
    }
    // Ids are made of the file's name, and the split of the ids.
    let folder = place.path().join(format!("{unit:e}"));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("data.h5");
    runs::hdf5_file(&path, |file| {
        let matrix = file.new_dataset::<f32>().shape((n, d)).create("embeddings").unwrap();
        matrix.write_raw(&values).unwrap();
    });
    path.display().to_string()
}

fn train(place: &TempDir, data: &str, preset: &str, name: &str) -> (std::path::PathBuf, String) {
    let run = place.path().join(name);
    let out = sae([
        "train",
        data,
        "--out",
        run.to_str().unwrap(),
        &format!("--preset={preset}"),
        "--latents=256",
        "--k=16",
        "--steps=60",
        // Low, so that rounding is amplified by less than is looked for.
        if preset == "data-topk" { "--lr=0.001" } else { "--lr=auto" },
        "--batch-size=128",
        "--device=cpu",
        "--early-stop=0",
        "--overwrite",
    ]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    (run, String::from_utf8_lossy(&out.stderr).into_owned())
}

fn fvu(run: &Path) -> f64 {
    let summary: Value = serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap();
    summary["val"]["fvu"].as_f64().unwrap()
}

#[test]
fn the_validation_fvu_is_the_same_from_a_millionth_of_the_unit_to_a_million() {
    let place = tempfile::tempdir().unwrap();
    for preset in ["data-topk", "topk"] {
        let (run, _) = train(&place, &data(&place, 1.0), preset, "one");
        let want = fvu(&run);
        assert!(want < 0.6, "{preset}: nothing was learned: {want}");
        for unit in [1e-6, 1e-3, 1e3, 1e6] {
            let (run, told) = train(&place, &data(&place, unit), preset, "other");
            let got = fvu(&run);
            // Dead latents that AuxK takes up come and go with rounding.
            let allowed = if preset == "topk" { 0.02 } else { 0.01 };
            assert!(
                (got / want - 1.0).abs() < allowed,
                "{preset} times {unit:e}: FVU {got}, and {want} times 1"
            );
            assert!(!told.contains("standard deviation of"), "{told}");
        }
    }
}

#[test]
fn a_unit_that_is_a_power_of_two_changes_no_bit() {
    let place = tempfile::tempdir().unwrap();
    // Both so small that what is added to a row's deviation follows the data.
    let units = [1.0f64 / (1 << 20) as f64, 1.0 / (1u64 << 40) as f64];
    for options in [&["--preset=data-topk"][..], &["--preset=topk", "--l1=0.5"]] {
        let [one, other] = units.map(|unit| {
            let run = place.path().join(format!("run{unit:e}"));
            let (data, to) = (data(&place, unit), run.display().to_string());
            let sizes = ["--latents=64", "-k=8", "--steps=30", "--batch-size=64"];
            let rest = ["--device=cpu", "--quiet", "--early-stop=0", "--overwrite"];
            sae_ok([&["train", &data, "--out", &to][..], options, &sizes, &rest].concat());
            run
        });
        // The mean row is data, and has their unit.
        let weights = |run: &PathBuf| {
            tensors(&run.join("model.safetensors"))
                .into_iter()
                .filter(|(name, _)| name != "train_mean")
                .collect::<Vec<_>>()
        };
        let [a, b] = [&one, &other].map(weights);
        assert!(a == b, "{options:?}: the weights differ");
        assert_eq!(fvu(&one), fvu(&other), "{options:?}");
    }
}

#[test]
fn a_preset_that_repeats_a_published_model_warns_of_another_unit() {
    let place = tempfile::tempdir().unwrap();
    for preset in ["relaxed-topk", "sparse-l1"] {
        for (unit, warns) in [(1.0, false), (1e-6, true), (1e6, true)] {
            let (_, told) = train(&place, &data(&place, unit), preset, "run");
            assert_eq!(told.contains("standard deviation of"), warns, "{preset} times {unit:e}: {told}");
        }
    }
}

#[test]
fn a_final_fvu_of_one_or_more_is_warned_of() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run").display().to_string();
    let data = data(&place, 1.0);
    let args = ["train", &data, "--out", &run, "--latents=16", "-k=1", "--steps=1", "--preset=relaxed-topk"];
    let out = sae(args);
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(told.contains("the validation FVU is") && told.contains("--preset data-topk"), "{told}");
    // A run without a validation split has its training figures alone.
    let json = std::fs::read(Path::new(&run).join("summary.json")).unwrap();
    let mut summary: Summary = serde_json::from_slice(&json).unwrap();
    summary.val = None;
    assert!(summary.fvu_warning().unwrap().contains("the training FVU is"));
    summary.train.as_mut().unwrap().fvu = 0.99;
    assert_eq!(summary.fvu_warning(), None);
}

#[test]
fn averaged_decoder_rows_of_length_one_stay_so() {
    let place = tempfile::tempdir().unwrap();
    for tied in ["--tied", "--untied"] {
        let run = place.path().join("run").display().to_string();
        let data = data(&place, 1.0);
        let sizes = ["--latents=64", "-k=8", "--steps=40", "--batch-size=64", "--device=cpu", "--quiet"];
        let kind = ["--ema=0.99", "--unit-norm-decoder=true", "--overwrite", tied];
        sae_ok([&["train", &data, "--out", &run][..], &sizes, &kind].concat());
        let all = tensors(&Path::new(&run).join("model.safetensors"));
        let (_, bytes) = all.iter().find(|(name, _)| name == "w_dec").unwrap();
        let values: Vec<f64> =
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
        let d = values.len() / 64;
        for (latent, row) in values.chunks_exact(d).enumerate() {
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            assert!((length - 1.0).abs() < 1e-5, "{tied}: the row of latent {latent} has length {length}");
        }
    }
}

/// A setting of a run's configuration.
fn setting(config: &str, name: &str) -> Option<f64> {
    config
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} = ")))
        .map(|value| value.parse().unwrap())
}

#[test]
fn the_configuration_of_a_run_gives_the_same_run_whatever_was_asked_for_the_unit() {
    let place = tempfile::tempdir().unwrap();
    let data = data(&place, 1e-4);
    let (one, two) = (place.path().join("one"), place.path().join("two"));
    let (first, second) = (one.to_str().unwrap(), two.to_str().unwrap());
    let config = one.join("config.toml").display().to_string();
    let sizes = ["--latents=64", "-k=8", "--steps=20", "--batch-size=64"];
    let cpu = ["--device=cpu", "--quiet", "--overwrite"];
    for asked in [&["--loss-scale=1"][..], &["--norm-eps=1e-5"], &["--loss-scale=1", "--norm-eps=1e-5"], &[]]
    {
        sae_ok([&["train", &data, "--out", first][..], &sizes, &cpu, asked].concat());
        sae_ok([&["train", "--config", &config, "--out", second][..], &cpu].concat());
        let [one, two] = [&one, &two].map(|run| tensors(&run.join("model.safetensors")));
        assert!(one == two, "{asked:?}: the second run has another model");
    }
}

#[test]
fn a_configuration_made_for_data_of_another_unit_is_warned_of() {
    let place = tempfile::tempdir().unwrap();
    let [usual, small] = [1.0, 1e-4].map(|unit| data(&place, unit));
    let (run, other) = (place.path().join("run"), place.path().join("other"));
    let (run, other) = (run.to_str().unwrap(), other.to_str().unwrap());
    let sizes = ["--latents=64", "-k=8", "--steps=20", "--batch-size=64", "--device=cpu"];
    sae_ok([&["train", &usual, "--out", run][..], &sizes].concat());
    let config = format!("{run}/config.toml");
    let train = |more: &[&str]| {
        let args =
            [&["train", &small, "--config", &config, "--out", other, "--overwrite"][..], more].concat();
        let out = sae(args);
        assert!(out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let told = train(&[]);
    let advice = told.split_once("give `").and_then(|(_, rest)| rest.split_once('`')).map(|(flags, _)| flags);
    let advice: Vec<&str> = advice.unwrap_or_else(|| panic!("{told}")).split(' ').collect();
    assert!(advice.contains(&"--loss-scale") && advice.contains(&"--norm-eps"), "{told}");
    let told = train(&advice);
    assert!(!told.contains("--loss-scale"), "{told}");
}

#[test]
fn rows_without_variance_do_not_set_the_unit_of_the_others() {
    let place = tempfile::tempdir().unwrap();
    // Of three rows two are zeros or of one value.
    let data = data_with(&place, 1e-6, |n, row| match n % 3 {
        0 => row.fill(0.0),
        1 => row.fill(3e-8),
        _ => (),
    });
    let resolved = sae_ok(["train", &data, "--dry-run", "--quiet", "--device=cpu"]);
    let eps = setting(&resolved, "norm-eps").unwrap();
    assert!(eps > 0.0 && eps < 1e-10, "{eps}: the deviation of a row is about 5e-8");
    let (run, _) = train(&place, &data, "data-topk", "run");
    assert!(fvu(&run) < 0.9, "{}", fvu(&run));
}

#[test]
fn rows_at_the_edge_of_float32_have_options_that_are_in_range() {
    let place = tempfile::tempdir().unwrap();
    for unit in [1e-36, 1e36] {
        let data = data(&place, unit);
        let resolved = sae_ok(["train", &data, "--dry-run", "--quiet", "--device=cpu"]);
        for name in ["norm-eps", "loss-scale"] {
            assert!(setting(&resolved, name).unwrap() > 0.0, "{resolved}");
        }
    }
}
