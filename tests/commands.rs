//! The command line as other programs rely on it.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "commands/encode.rs"]
mod encode;
#[path = "commands/features.rs"]
mod features;
#[path = "commands/kinds.rs"]
mod kinds;
#[path = "commands/labels.rs"]
mod labels;
#[path = "commands/outputs.rs"]
mod outputs;
#[path = "commands/overlap.rs"]
mod overlap;
#[path = "commands/refusals.rs"]
mod refusals;
#[path = "commands/report.rs"]
mod report;
#[path = "common/runs.rs"]
mod runs;
#[path = "commands/sampled.rs"]
mod sampled;
#[path = "commands/spilled.rs"]
mod spilled;
#[path = "commands/splits.rs"]
mod splits;
#[path = "commands/streams.rs"]
mod streams;
#[path = "commands/sweep.rs"]
mod sweep;
#[path = "commands/windows.rs"]
mod windows;

use runs::{Place, sae, sae_fails, sae_ok, same_run, write_data};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

const SMALL: [&str; 5] = ["--latents=64", "--k=4", "--steps=60", "--batch-size=32", "--anneal-steps=30"];

impl Place {
    fn train(&self, out: &str, more: &[&str]) -> String {
        let mut args = vec!["train".to_owned(), self.name("data.h5"), "--out".into(), self.name(out)];
        args.extend(SMALL.iter().chain(more).map(|s| (*s).to_owned()));
        sae_ok(args)
    }

    fn fails(&self, more: &[&str]) -> (i32, String) {
        let mut args = vec!["train".to_owned(), self.name("data.h5"), "--out".into(), self.name("fails")];
        args.extend(more.iter().map(|s| (*s).to_owned()));
        let result = sae_fails(args);
        assert!(!self.path("fails").exists(), "a refused run left a folder");
        result
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_folder_holds_what_the_documentation_says() {
    let place = Place::with_data(300, 16);
    let table = place.train("run", &[]);
    assert!(table.contains("train") && table.contains("val") && table.contains("FVU"), "{table}");
    let run = place.path("run");
    for name in [
        "config.toml",
        "metrics.csv",
        "splits.tsv",
        "model.safetensors",
        "summary.json",
        "relaxed_topk_sae_mse.png",
        "relaxed_topk_sae_mae.png",
        "checkpoints/best.safetensors",
    ] {
        assert!(run.join(name).is_file(), "{name}");
    }
    let summary = json(&run.join("summary.json"));
    for split in ["train", "val", "test"] {
        for key in ["mse", "mae", "fvu", "l0"] {
            assert!(summary[split][key].as_f64().unwrap() > 0.0, "{split} {key}");
        }
    }
    for key in ["dead_fraction", "rows_per_second", "steps", "device", "precision", "seed", "version"] {
        assert!(!summary[key].is_null(), "{key}");
    }
    let header = std::fs::read_to_string(run.join("metrics.csv")).unwrap();
    let header = header.lines().next().unwrap();
    for key in [
        "step",
        "epoch",
        "tau",
        "alpha",
        "lr",
        "rows_per_second",
        "train_mse",
        "val_fvu",
        "val_l0",
        "dead_fraction",
    ] {
        assert!(header.split(',').any(|name| name == key), "{key}");
    }
    let tensors: Vec<String> =
        runs::tensors(&run.join("model.safetensors")).into_iter().map(|(n, _)| n).collect();
    assert_eq!(tensors, ["b_lat", "b_pre", "train_mean", "w_dec", "w_enc"]);
    let splits = std::fs::read_to_string(run.join("splits.tsv")).unwrap();
    assert_eq!(splits.lines().count(), 301);
    assert!(splits.starts_with("id\tsplit\nid0000\t"));
}

/// The numbers of a column of a run's `metrics.csv`.
fn column(run: &Path, name: &str) -> Vec<Option<f64>> {
    let mut reader = csv::Reader::from_path(run.join("metrics.csv")).unwrap();
    let at = reader.headers().unwrap().iter().position(|field| field == name).unwrap();
    reader.records().map(|record| record.unwrap()[at].parse().ok()).collect()
}

#[test]
fn metrics_hold_the_parts_of_the_loss_that_a_preset_has() {
    let place = Place::with_data(300, 16);
    let all = ["loss_recon", "loss_l1", "loss_aux", "grad_norm"];
    for (preset, more, parts, plots) in [
        ("data-topk", "", &["loss_recon"][..], &["relaxed_topk_sae_mse.png", "relaxed_topk_sae_mae.png"][..]),
        (
            "relaxed-topk",
            "--clip-norm=1",
            &["loss_recon", "grad_norm"],
            &["relaxed_topk_sae_mse.png", "relaxed_topk_sae_mae.png"],
        ),
        (
            "topk",
            "--dead-after=1",
            &["loss_recon", "loss_aux", "grad_norm"],
            &["mse.png", "mae.png", "loss_parts.png"],
        ),
        (
            "sparse-l1",
            "--l1-warmup=0",
            &["loss_recon", "loss_l1", "grad_norm"],
            &["mse.png", "mae.png", "loss_parts.png"],
        ),
        (
            "data-topk",
            "--l1=0.5",
            &["loss_recon", "loss_l1"],
            &["relaxed_topk_sae_mse.png", "relaxed_topk_sae_mae.png", "loss_parts.png"],
        ),
    ] {
        let options = ["--preset", preset, "--eval-every=20", "--overwrite", "--early-stop=0"];
        let more = Some(more).filter(|more| !more.is_empty());
        place.train("run", &options.into_iter().chain(more).collect::<Vec<_>>());
        let run = place.path("run");
        for name in all {
            let values = column(&run, name);
            assert_eq!(values.len(), 3);
            assert!(
                values.iter().all(|v| v.is_some() == parts.contains(&name)),
                "{preset} {name}: {values:?}"
            );
        }
        // The total is what it was: the sum of its parts with their weights.
        let (config, loss) =
            (std::fs::read_to_string(run.join("config.toml")).unwrap(), column(&run, "train_loss"));
        let given = |name: &str| -> Option<f64> {
            let line = config.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")))?;
            Some(line.parse().unwrap())
        };
        let weight = |name: &str| given(name).unwrap();
        // The L1 weight is one of the scaled loss.
        let scale = given("loss-scale").unwrap_or(1.0);
        assert_eq!(scale != 1.0, preset == "data-topk" || preset == "topk", "{preset}: {scale}");
        let (recon, l1, aux) =
            (column(&run, "loss_recon"), column(&run, "loss_l1"), column(&run, "loss_aux"));
        for line in 0..3 {
            let part = |values: &[Option<f64>], weight: f64| values[line].map_or(0.0, |v| v * weight);
            let sum = part(&recon, 1.0) + part(&l1, weight("l1") / scale) + part(&aux, weight("aux-coef"));
            let total = loss[line].unwrap();
            assert!((sum / total - 1.0).abs() < 1e-12, "{preset}: {sum} {total}");
        }
        let pngs: HashSet<String> = std::fs::read_dir(&run)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".png"))
            .collect();
        let want = plots.iter().chain(&["latents_alive.png"]).map(|s| (*s).to_owned()).collect();
        assert_eq!(pngs, want, "{preset}");
        sae_ok(["report", &place.name("run")]);
        let html = std::fs::read_to_string(run.join("report.html")).unwrap();
        assert_eq!(
            html.contains("Training loss and its parts"),
            plots.contains(&"loss_parts.png"),
            "{preset}"
        );
    }
}

#[test]
fn metrics_of_version_0_1_0_are_read_by_compare_report_and_resume() {
    let place = Place::with_data(300, 16);
    place.train("run", &["--preset=sparse-l1"]);
    let table = place.path("run/metrics.csv");
    let new = std::fs::read(&table).unwrap();
    let mut reader = csv::Reader::from_reader(new.as_slice());
    let header = reader.headers().unwrap().clone();
    let later = |name: &str| name == "grad_norm" || name.starts_with("loss_");
    let keep: Vec<usize> = (0..header.len()).filter(|&at| !later(&header[at])).collect();
    assert_eq!(keep.len(), 23);
    let mut old = csv::Writer::from_path(&table).unwrap();
    for record in std::iter::once(header).chain(reader.records().map(Result::unwrap)) {
        old.write_record(keep.iter().map(|&at| &record[at])).unwrap();
    }
    old.flush().unwrap();
    let run = place.name("run");
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    let compared: Value = serde_json::from_str(&sae_ok(["compare", &run, "--json"])).unwrap();
    assert!(compared[0]["val_fvu"].as_f64().unwrap() > 0.0, "{compared}");
    sae_ok(["report", &run]);
    let html = std::fs::read_to_string(place.path("run/report.html")).unwrap();
    assert!(html.contains("FVU: fraction") && !html.contains("Training loss and its parts"));
    sae_ok(["train", "--resume", &run]);
    assert!(column(Path::new(&run), "loss_l1").iter().all(Option::is_some), "they are in the checkpoint");
}

#[test]
fn training_again_from_the_resolved_configuration_gives_the_same_run() {
    let place = Place::with_data(300, 16);
    place.train("first", &["--preset=topk", "--seed=7", "--tied"]);
    let config = place.name("first/config.toml");
    sae_ok(["train", "--config", &config, "--out", &place.name("second")]);
    same_run(&place.path("first"), &place.path("second"));
    for relaxation in ["lapsum", "anneal-k"] {
        let (first, second) = (format!("{relaxation}-1"), format!("{relaxation}-2"));
        place.train(&first, &["--relaxation", relaxation, "--pool=9", "--init=data", "--device=cpu"]);
        let config = place.name(&format!("{first}/config.toml"));
        sae_ok(["train", "--config", &config, "--out", &place.name(&second), "--device=cpu"]);
        same_run(&place.path(&first), &place.path(&second));
    }
}

#[test]
fn options_of_a_warm_up_that_contradict_each_other_are_wrong_usage() {
    let place = Place::with_data(300, 16);
    for (options, named) in [
        (&["--relaxation=none", "--anneal-steps=5"][..], "--anneal-steps 5"),
        (&["--pool=9"], "--pool 9"),
        (&["--relaxation=none", "--pool=9"], "--pool 9"),
        (&["--relaxation=lapsum", "-k=5", "--pool=4"], "--pool 4"),
        (&["--relaxation=lapsum", "--latents=50", "--pool=51"], "--pool 51"),
    ] {
        let (status, error) = place.fails(options);
        assert_eq!(status, 2, "{options:?}: {error}");
        assert!(error.contains(named), "{options:?}: {error}");
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let place = Place::with_data(300, 16);
    for options in [&[][..], &["--relaxation=anneal-k", "--init=data", "--pre-bias=mean", "--device=cpu"]] {
        for (run, threads) in [("one", "--threads=1"), ("three", "--threads=3")] {
            place.train(run, &[&[threads, "--overwrite"], options].concat());
        }
        same_run(&place.path("one"), &place.path("three"));
    }
}

#[test]
fn another_seed_gives_another_run() {
    let place = Place::with_data(300, 16);
    place.train("a", &["--seed=1"]);
    place.train("b", &["--seed=2"]);
    let model = |run: &str| std::fs::read(place.path(run).join("model.safetensors")).unwrap();
    assert!(model("a") != model("b"));
}

#[test]
fn seeds_share_a_split_where_it_has_a_seed_of_its_own() {
    let place = Place::with_data(300, 16);
    place.train("a", &["--seed=1", "--split-seed=5"]);
    place.train("b", &["--seed=2", "--split-seed=5"]);
    place.train("c", &["--seed=5"]);
    place.train("d", &["--seed=1"]);
    let splits = |run: &str| std::fs::read_to_string(place.path(run).join("splits.tsv")).unwrap();
    assert_eq!(splits("a"), splits("b"));
    assert_eq!(splits("a"), splits("c"));
    assert_ne!(splits("a"), splits("d"));
    let model = |run: &str| std::fs::read(place.path(run).join("model.safetensors")).unwrap();
    assert!(model("a") != model("b"));
    // Commands on the model go by the split that it was trained with.
    let summary = json(&place.path("a/summary.json"));
    let text = sae_ok(["eval", &place.name("a"), &place.name("data.h5"), "--split=val", "--json"]);
    let results: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(results[0]["rows"], summary["val"]["rows"]);
    let (a, b) = (results[0]["fvu"].as_f64().unwrap(), summary["val"]["fvu"].as_f64().unwrap());
    assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
    let codes = place.name("codes.tsv");
    sae_ok(["encode", &place.name("a"), &place.name("data.h5"), "--split=val", "--format=tsv", "-o", &codes]);
    let of_val: HashSet<String> =
        splits("a").lines().filter_map(|l| l.strip_suffix("\tval")).map(str::to_owned).collect();
    let encoded: HashSet<String> = std::fs::read_to_string(codes)
        .unwrap()
        .lines()
        .skip(1)
        .filter_map(|l| l.split('\t').next())
        .map(str::to_owned)
        .collect();
    assert_eq!(encoded, of_val);
}

#[test]
fn the_default_is_told_by_its_name_and_gives_the_same_run() {
    let place = Place::with_data(300, 16);
    let plan = |more: &[&str]| {
        sae_ok([&["train", &place.name("data.h5"), "--dry-run", "--json"][..], more].concat())
    };
    assert_eq!(plan(&[]), plan(&["--preset=data-topk"]));
    let value: Value = serde_json::from_str(&plan(&[])).unwrap();
    for (key, want) in
        [("preset", "data-topk"), ("init", "data"), ("pre-bias", "mean"), ("relaxation", "lapsum")]
    {
        assert_eq!(value["config"][key], want, "{key}");
    }
    // The literal warm-up stays what it was.
    let value: Value = serde_json::from_str(&plan(&["--preset=relaxed-topk"])).unwrap();
    for (key, want) in [("init", "linear"), ("pre-bias", "zero"), ("relaxation", "softmax")] {
        assert_eq!(value["config"][key], want, "{key}");
    }
    for (key, want) in
        [("lr", 1e-3), ("ema", 0.0), ("weight-decay", 0.0), ("adam-b2", 0.999), ("early-stop", 0.0)]
    {
        assert_eq!(value["config"][key].as_f64(), Some(want), "{key}");
    }
    assert_eq!(value["config"]["anneal-steps"], 2000);
}

#[test]
fn eval_gives_the_figures_of_the_summary() {
    for preset in ["data-topk", "relaxed-topk", "topk", "sparse-l1"] {
        let place = Place::with_data(300, 16);
        place.train("run", &["--preset", preset]);
        let summary = json(&place.path("run/summary.json"));
        let text = sae_ok(["eval", &place.name("run"), &place.name("data.h5"), "--json"]);
        let results: Value = serde_json::from_str(&text).unwrap();
        let splits: Vec<&str> =
            results.as_array().unwrap().iter().map(|r| r["split"].as_str().unwrap()).collect();
        assert_eq!(splits, ["train", "val", "test", "all"]);
        for result in results.as_array().unwrap().iter().take(3) {
            let stored = &summary[result["split"].as_str().unwrap()];
            for key in ["mse", "mae", "fvu", "l0", "cosine"] {
                let (a, b) = (result[key].as_f64().unwrap(), stored[key].as_f64().unwrap());
                assert!((a - b).abs() <= 1e-6 * b.abs(), "{preset} {key}: {a} {b}");
            }
        }
        assert_eq!(results[0]["dead_fraction"], summary["dead_fraction"]);
    }
}

#[test]
fn sparse_l1_with_relu_inference_is_evaluated_with_all_positive_scores() {
    let place = Place::with_data(300, 16);
    place.train("topk", &["--preset=sparse-l1"]);
    place.train("relu", &["--preset=sparse-l1", "--inference=relu"]);
    let l0 = |run: &str| json(&place.path(run).join("summary.json"))["train"]["l0"].as_f64().unwrap();
    assert!(l0("topk") <= 4.0);
    assert!(l0("relu") > 4.0, "{}", l0("relu"));
}

#[test]
fn a_dry_run_prints_a_configuration_that_trains_and_makes_nothing() {
    let place = Place::with_data(300, 16);
    let mut args = vec!["train".to_owned(), place.name("data.h5"), "--dry-run".into()];
    args.extend(SMALL.iter().map(|s| (*s).to_owned()));
    let text = sae_ok(args);
    assert!(text.contains("latents = 64") && text.contains("memory"), "{text}");
    assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), 1);
    std::fs::write(place.path("c.toml"), text).unwrap();
    sae_ok(["train", "--config", &place.name("c.toml"), "--out", &place.name("run")]);
}

#[test]
fn a_dry_run_speaks_json() {
    let place = Place::with_data(300, 16);
    let args = ["train", &place.name("data.h5"), "--dry-run", "--json", "--latents=64", "--k=4"];
    let plan: Value = serde_json::from_str(&sae_ok(args)).unwrap();
    assert_eq!(plan["config"]["latents"], 64);
    assert_eq!(plan["config"]["lr"], 0.003);
    assert_eq!(plan["rows"]["all"], 300);
    assert_eq!(plan["parameters"], 2 * 64 * 16 + 64 + 16);
    // Values, and ids of six letters: the allocator gives no less than four words.
    assert_eq!(plan["memory_bytes"]["data"], 300 * 16 * 4 + 300 * (24 + 32));
    assert!(plan["memory_bytes"]["training"].as_u64().unwrap() > 12 * (2 * 64 * 16));
}

#[test]
fn a_model_that_no_memory_holds_is_refused_before_anything_is_made() {
    let place = Place::with_data(300, 16);
    for more in [["--latents=4000000000", "--k=4"], ["--latents=4294967295", "--aux-k=18446744073709551615"]]
    {
        let (status, message) = place.fails(&more);
        assert_eq!(status, 1, "{message}");
        assert!(message.contains("memory") && message.contains("--latents"), "{message}");
        // A dry run is how one finds sizes that fit.
        let out = sae_ok([&["train", &place.name("data.h5"), "--dry-run"][..], &more].concat());
        assert!(out.contains("# memory of training"), "{out}");
    }
}

#[test]
fn many_dead_latents_are_told_once_and_not_to_quiet_or_json() {
    let place = Place::with_data(300, 16);
    // A latent a row and 240 training rows: most of 1024 cannot fire.
    let dead = |out: &str, more: &[&str]| {
        let (data, out) = (place.name("data.h5"), place.name(out));
        let args = ["train", &data, "--out", &out, "--latents=1024", "--k=1", "--steps=20"];
        String::from_utf8(sae([&args[..], more].concat()).stderr).unwrap()
    };
    let text = dead("a", &[]);
    let told: Vec<&str> = text.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(
        told.len() == 1 && told[0].contains("--preset data-topk") && told[0].contains("--latents 512"),
        "{text}"
    );
    assert_eq!(dead("b", &["--quiet"]), "");
    assert!(!dead("c", &["--json"]).contains("dead"));
}

#[test]
fn a_folder_in_use_is_not_written_into() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let args = ["train", &place.name("data.h5"), "--out", &place.name("run"), "--steps=5", "--latents=40"]
        .map(str::to_owned);
    let (status, message) = sae_fails(&args);
    assert!(status == 2 && message.contains("--overwrite") && message.contains("--resume"), "{message}");
    let mut again = args.to_vec();
    again.push("--overwrite".into());
    sae_ok(&again);
    std::fs::write(place.path("run/notes.txt"), "mine").unwrap();
    let (status, message) = sae_fails(&again);
    assert!(status == 2 && message.contains("notes.txt"), "{message}");
    assert!(place.path("run/notes.txt").is_file());
}

#[test]
fn options_that_cannot_be_are_refused_with_the_flag_and_status_2() {
    let place = Place::with_data(300, 16);
    for (args, words) in [
        (vec!["--latents=16", "--k=17"], vec!["--k 17", "16"]),
        (vec!["--batch-size=5000"], vec!["--batch-size 5000", "full"]),
        (vec!["--k=0"], vec!["--k 0"]),
        (vec!["--steps=0"], vec!["--steps 0"]),
        (vec!["--lr=-1"], vec!["--lr -1"]),
        (vec!["--lr", "-1e-3"], vec!["--lr -0.001", "at least 0"]),
        (vec!["--ema", "-0.5"], vec!["--ema -0.5"]),
        (vec!["--tau-end=0"], vec!["--tau-end 0"]),
        (vec!["--device=cpu", "--precision=bf16"], vec!["--precision bf16", "f32"]),
        (vec!["--device=cpu", "--precision=tf32", "--dry-run"], vec!["--precision tf32", "f32"]),
        (vec!["--epochs=-2"], vec!["--epochs -2"]),
    ] {
        let (status, message) = place.fails(&args);
        assert_eq!(status, 2, "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
    let unknown = sae(["train", "--no-such-flag"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert_eq!(sae(["devices", "--device=gpu"]).status.code(), Some(2));
}

#[test]
fn a_device_that_is_not_there_is_refused_before_anything_is_made() {
    let place = Place::with_data(300, 16);
    // No machine has as many; one without a driver says that instead.
    for more in [vec!["--device=cuda:99"], vec!["--device=cuda:99", "--dry-run"]] {
        let (status, message) = place.fails(&more);
        assert!(status == 1 && message.contains("--device cuda:99"), "{message}");
    }
    place.train("run", &["--device=cpu"]);
    let (status, message) =
        sae_fails(["eval", &place.name("run"), &place.name("data.h5"), "--device=cuda:99"]);
    assert!(status == 1 && message.contains("--device cuda:99"), "{message}");
    assert_eq!(json(&place.path("run/summary.json"))["device"], "cpu");
}

#[test]
fn the_bits_do_not_depend_on_when_steps_are_waited_for() {
    let place = Place::with_data(300, 16);
    place.train("seldom", &[]);
    place.train("often", &["--checkpoint-every=1"]);
    let (seldom, often) = (place.path("seldom"), place.path("often"));
    assert_eq!(runs::metrics(&seldom), runs::metrics(&often));
    let last = |run: &Path| runs::tensors(runs::checkpoints(run).last().unwrap());
    assert!(last(&seldom) == last(&often));
}

#[test]
fn eval_tells_the_rows_that_it_skipped() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    write_data(&place.path("more.h5"), 310, 16);
    // Ids are those of the first file: 300 of them are seen twice.
    let args =
        ["eval", &place.name("run"), &place.name("data.h5"), &place.name("more.h5"), "--skip-bad-rows=all"];
    let output = sae(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && text.contains("warning: 300 rows skipped"), "{text}");
}

#[test]
fn a_model_of_the_gpu_s_precision_is_evaluated_and_its_run_not_resumed_on_the_cpu() {
    let place = Place::with_data(300, 16);
    place.train("run", &["--device=cpu"]);
    // What a run in bf16 leaves, as far as the command line looks at it.
    let config = place.path("run/config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("precision = \"f32\"", "precision = \"bf16\"")).unwrap();
    let (status, message) = sae_fails(["train", "--resume", &place.name("run"), "--device=cpu"]);
    assert!(status == 2 && message.contains("--precision bf16"), "{message}");
    // The first eight bytes are the length of the header, which gets one longer.
    let model = place.path("run/model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    let (from, to) = (br#"\"precision\":\"f32\""#, br#"\"precision\":\"bf16\""#);
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    bytes.splice(at..at + from.len(), to.iter().copied());
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) + 1;
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    std::fs::write(&model, bytes).unwrap();
    sae_ok(["eval", &place.name("run"), &place.name("data.h5"), "--device=cpu"]);
}

#[test]
fn a_configuration_file_with_a_wrong_key_is_refused_with_its_line() {
    let place = Place::with_data(300, 16);
    std::fs::write(place.path("c.toml"), "k = 4\nlatent = 3\n").unwrap();
    let (status, message) = place.fails(&["--config", &place.name("c.toml")]);
    assert!(status == 2 && message.contains("line 2") && message.contains("latent"), "{message}");
}

#[test]
fn an_output_place_that_cannot_be_written_is_told_with_its_path() {
    let place = Place::with_data(300, 16);
    let out = "/proc/no-such-place/run";
    let (status, message) = sae_fails(["train", &place.name("data.h5"), "--out", out]);
    assert!(status == 1 && message.contains("/proc/no-such-place"), "{message}");
}

#[test]
fn files_of_another_kind_are_told_apart() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    std::fs::write(place.path("text.h5"), "hello").unwrap();
    let (status, message) = sae_fails(["train", &place.name("text.h5"), "--out", &place.name("x")]);
    assert!(status == 1 && message.contains("text.h5"), "{message}");
    let (status, message) = sae_fails(["eval", &place.name("data.h5"), &place.name("data.h5")]);
    assert!(status == 1 && message.contains("not a model"), "{message}");
    write_data(&place.path("wide.h5"), 50, 20);
    let (status, message) = sae_fails(["eval", &place.name("run"), &place.name("wide.h5")]);
    assert!(status == 1 && message.contains("20") && message.contains("16"), "{message}");
    let whole = std::fs::read(place.path("run/model.safetensors")).unwrap();
    for length in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(place.path("cut.safetensors"), &whole[..length]).unwrap();
        let (status, _) = sae_fails(["inspect", &place.name("cut.safetensors")]);
        assert_eq!(status, 1);
    }
}

#[test]
fn early_stopping_keeps_the_best_model() {
    let place = Place::with_data(300, 16);
    // A large rate overfits soon: validation gets worse long before the last step.
    place.train("run", &["--lr=0.02", "--steps=4000", "--eval-every=20", "--early-stop=3", "--latents=256"]);
    let summary = json(&place.path("run/summary.json"));
    assert!(summary["steps"].as_u64().unwrap() < 4000);
    assert_eq!(summary["steps"], summary["best_step"]);
}

#[test]
fn inspect_and_devices_speak_json_too() {
    let place = Place::with_data(300, 16);
    place.train("run", &[]);
    let data: Value = serde_json::from_str(&sae_ok(["inspect", &place.name("data.h5"), "--json"])).unwrap();
    assert_eq!(data["n_rows"], 300);
    let model: Value = serde_json::from_str(&sae_ok(["inspect", &place.name("run"), "--json"])).unwrap();
    assert_eq!(model["architecture"]["n_latents"], 64);
    assert_eq!(model["provenance"]["options"]["latents"], 64);
    assert!(sae_ok(["inspect", &place.name("run")]).contains("M = 64"));
    let devices: Value = serde_json::from_str(&sae_ok(["devices", "--json"])).unwrap();
    assert!(devices["cpu"]["cores"].as_u64().unwrap() >= 1);
}
