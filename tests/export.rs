//! Models of other libraries: what is written for them, exactly, and read back.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "export/esmc.rs"]
mod esmc;
#[path = "export/made.rs"]
mod made;
#[path = "common/runs.rs"]
mod runs;
#[path = "export/thresholds.rs"]
mod thresholds;

use runs::{Place, sae, sae_fails, sae_ok, tensors};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use topk_sae::export::pt;

const D: usize = 16;
const M: usize = 64;
const K: usize = 4;

impl Place {
    /// Data and a short run on them.
    fn trained(more: &[&str]) -> Self {
        let place = Self::with_data(120, D);
        let (data, run) = (place.name("data.h5"), place.name("run"));
        let mut args =
            vec!["train", &data, "--out", &run, "--latents=64", "--k=4", "--steps=20", "--batch-size=32"];
        args.extend(more);
        sae_ok(args);
        place
    }

    /// Exports the run; returns the folder and what was said on standard error.
    fn export(&self, format: &str) -> (PathBuf, String) {
        let (run, out) = (self.name("run"), self.name(format));
        let output = sae(["export", &run, "--format", format, "-o", &out]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        (self.path(format), said)
    }

    fn import(&self, from: &Path, out: &str) -> PathBuf {
        let out = self.name(out);
        sae_ok(["import", from.to_str().unwrap(), "-o", &out]);
        PathBuf::from(out)
    }

    /// Figures on all rows: a model file knows no splits.
    fn eval(&self, model: &Path) -> Value {
        let args = ["eval", model.to_str().unwrap(), &self.name("data.h5"), "--split=all", "--json"];
        let mut figures = serde_json::from_str::<Value>(&sae_ok(args)).unwrap()[0].clone();
        // Known of a run alone.
        figures.as_object_mut().unwrap().remove("dead_on_training_rows");
        figures
    }
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

type Shapes = BTreeMap<String, (Dtype, Vec<usize>)>;

fn shapes(path: &Path) -> Shapes {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, (view.dtype(), view.shape().to_vec()))).collect()
}

fn f32s(all: &[(&str, &[usize])]) -> Shapes {
    all.iter().map(|(name, shape)| ((*name).to_owned(), (Dtype::F32, shape.to_vec()))).collect()
}

fn own(place: &Place) -> BTreeMap<String, Vec<u8>> {
    tensors(&place.path("run/model.safetensors")).into_iter().collect()
}

#[test]
fn saelens_has_the_tensors_and_settings_of_its_format() {
    let place = Place::trained(&[]);
    let (folder, said) = place.export("saelens");
    assert!(!said.contains("warning"), "{said}");
    let want = f32s(&[("W_enc", &[D, M]), ("W_dec", &[M, D]), ("b_enc", &[M]), ("b_dec", &[D])]);
    assert_eq!(shapes(&folder.join("sae_weights.safetensors")), want);
    let want = json!({
        "architecture": "topk", "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": true, "normalize_activations": "layer_norm", "reshape_activations": "none",
        "k": K, "rescale_acts_by_decoder_norm": false,
        "metadata": { "sae_lens_version": "6.18.0", "sae_lens_training_version": "6.18.0" },
    });
    assert_eq!(json(folder.join("cfg.json")), want);
    let written: BTreeMap<_, _> = tensors(&folder.join("sae_weights.safetensors")).into_iter().collect();
    let ours = own(&place);
    assert!(written["W_dec"] == ours["w_dec"] && written["b_enc"] == ours["b_lat"]);
    for (m, d) in [(0, 0), (3, 7), (M - 1, D - 1)] {
        let (a, b) = (4 * (d * M + m), 4 * (m * D + d));
        assert_eq!(written["W_enc"][a..a + 4], ours["w_enc"][b..b + 4], "latent {m}, input {d}");
    }
}

#[test]
fn saelens_gets_the_log_of_firing_rates_where_data_are_given() {
    let place = Place::trained(&[]);
    let (run, data, out) = (place.name("run"), place.name("data.h5"), place.name("rates"));
    let (folder, _) = place.export("saelens");
    assert!(!folder.join("sparsity.safetensors").exists(), "rates that nobody counted");
    sae_ok(["export", &run, "--format=saelens", "-o", &out, "--data", &data]);
    let path = place.path("rates/sparsity.safetensors");
    assert_eq!(shapes(&path), f32s(&[("sparsity", &[M])]));
    let bytes = tensors(&path).remove(0).1;
    let logs: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    sae_ok(["encode", &run, &data, "-o", &place.name("codes.tsv"), "--format=tsv"]);
    let mut fired = [0u32; M];
    for line in std::fs::read_to_string(place.path("codes.tsv")).unwrap().lines().skip(1) {
        fired[line.split('\t').nth(1).unwrap().parse::<usize>().unwrap()] += 1;
    }
    assert!(fired.contains(&0) && fired.iter().any(|n| *n > 0), "nothing to tell apart: {fired:?}");
    for (log, n) in logs.iter().zip(fired) {
        let want = (f64::from(n) / 120.0 + 1e-10).log10();
        // float32 holds numbers to -10 to 5e-7.
        assert!((f64::from(*log) - want).abs() < 1e-6, "{n} of 120 rows: {log}");
    }
    assert_eq!(
        place.eval(&place.import(&place.path("rates"), "again.safetensors")),
        place.eval(&place.path("run"))
    );
    let (status, text) =
        sae_fails(["export", &run, "--format=openai", "-o", &place.name("no"), "--data", &data]);
    assert!(status == 2 && text.contains("--data") && text.contains("openai"), "{text}");
    assert!(!place.path("no").exists());
}

#[test]
fn relu_inference_is_saelens_standard_and_raw_rows_are_declared() {
    let place = Place::trained(&["--preset=sparse-l1", "--inference=relu", "--tied"]);
    let (folder, _) = place.export("saelens");
    let config = json(folder.join("cfg.json"));
    assert_eq!(config["architecture"], "standard");
    assert_eq!(config["normalize_activations"], "none");
    assert!(config.get("k").is_none() && config.get("rescale_acts_by_decoder_norm").is_none());
    assert_eq!(shapes(&folder.join("sae_weights.safetensors"))["W_dec"], (Dtype::F32, vec![M, D]));
    assert_eq!(place.eval(&place.import(&folder, "back.safetensors")), place.eval(&place.path("run")));
}

#[test]
fn a_file_of_weights_stands_for_its_folder() {
    let place = Place::trained(&[]);
    let want = place.eval(&place.path("run"));
    for format in ["saelens", "sparsify", "dictionary-learning", "interprot", "openai"] {
        let (folder, _) = place.export(format);
        let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let weights: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|e| e == "safetensors" || e == "pt")).collect();
        assert_eq!(weights.len(), 1, "{format}: {weights:?}");
        assert_eq!(
            place.eval(&place.import(&weights[0], &format!("{format}.safetensors"))),
            want,
            "{format}"
        );
    }
}

#[test]
fn libraries_that_normalise_with_another_epsilon_than_the_model_are_warned_of() {
    let place = Place::trained(&["--norm-eps=1e-7"]);
    let want = place.eval(&place.path("run"));
    for (format, library) in
        [("saelens", "SAELens"), ("interprot", "InterProt"), ("openai", "OpenAI's Autoencoder")]
    {
        let (folder, said) = place.export(format);
        let readme = std::fs::read_to_string(folder.join("README.txt")).unwrap();
        for text in [&said, &readme] {
            assert!(text.contains(&format!("{library} adds 1e-5")) && text.contains("1e-7"), "{text}");
            assert!(text.contains("multiply rows by 1.000e2") && text.contains("divide"), "{text}");
        }
        assert_eq!(place.eval(&place.import(&folder, &format!("{format}.safetensors"))), want, "{format}");
    }
    for format in ["sparsify", "dictionary-learning"] {
        let (_, said) = place.export(format);
        assert!(said.contains("(std + 1e-7)"), "{said}");
    }
}

#[test]
fn a_relu_model_tells_how_dictionary_learning_leaves_its_codes_alone() {
    let place = Place::trained(&["--inference=relu", "--anneal-steps=0"]);
    let (folder, said) = place.export("dictionary-learning");
    let readme = std::fs::read_to_string(folder.join("README.txt")).unwrap();
    for text in [&said, &readme] {
        assert!(text.contains("load_dictionary multiplies the codes"), "{text}");
        assert!(text.contains("normalise rows first"), "a note of two must not hide the other: {text}");
    }
    assert!(
        readme.contains("AutoEncoder.from_pretrained(\"DIR/ae.pt\", normalize_decoder=False)"),
        "{readme}"
    );
}

#[test]
fn sparsify_and_interprot_have_the_tensors_of_their_formats() {
    let place = Place::trained(&[]);
    let (folder, said) = place.export("sparsify");
    assert!(said.contains("warning: sparsify does not normalise"), "{said}");
    assert!(std::fs::read_to_string(folder.join("README.txt")).unwrap().contains("normalise rows first"));
    let names: [(&str, &[usize]); 4] =
        [("encoder.weight", &[M, D]), ("encoder.bias", &[M]), ("W_dec", &[M, D]), ("b_dec", &[D])];
    assert_eq!(shapes(&folder.join("sae.safetensors")), f32s(&names));
    let want = json!({
        "activation": "topk", "expansion_factor": 4, "normalize_decoder": false, "num_latents": M, "k": K,
        "multi_topk": false, "skip_connection": false, "transcode": false, "d_in": D,
    });
    assert_eq!(json(folder.join("cfg.json")), want);

    let (folder, said) = place.export("interprot");
    assert!(!said.contains("warning"), "{said}");
    let mut want = f32s(&[("w_enc", &[D, M]), ("w_dec", &[M, D]), ("b_enc", &[M]), ("b_pre", &[D])]);
    want.insert("stats_last_nonzero".into(), (Dtype::I64, vec![M]));
    assert_eq!(shapes(&folder.join("interprot.safetensors")), want);
}

#[test]
fn the_pt_formats_have_the_tensors_of_theirs() {
    let place = Place::trained(&[]);
    let (folder, _) = place.export("dictionary-learning");
    let found = pt::read(&folder.join("ae.pt")).unwrap();
    let got: Vec<_> = found.tensors.iter().map(|(name, t)| (name.as_str(), t.shape.clone())).collect();
    let want: [(&str, Vec<usize>); 6] = [
        ("b_dec", vec![D]),
        ("decoder.weight", vec![D, M]),
        ("encoder.bias", vec![M]),
        ("encoder.weight", vec![M, D]),
        ("k", vec![]),
        ("threshold", vec![]),
    ];
    assert_eq!(got, want);
    assert_eq!((found.tensors["k"].values[0], found.tensors["threshold"].values[0]), (K as f32, -1.0));
    let config = json(folder.join("config.json"));
    assert_eq!(config["trainer"]["dict_class"], "AutoEncoderTopK");
    assert_eq!(config["trainer"]["k"], K);

    let (folder, said) = place.export("openai");
    assert!(!said.contains("warning"), "{said}");
    let found = pt::read(&folder.join("autoencoder.pt")).unwrap();
    assert_eq!(found.texts["activation"], "TopK");
    assert_eq!(found.numbers["activation_state_dict.k"], K as i64);
    for (name, shape) in [("pre_bias", vec![D]), ("latent_bias", vec![M]), ("decoder.weight", vec![D, M])] {
        assert_eq!(found.tensors[name].shape, shape, "{name}");
    }
}

#[test]
fn every_format_comes_back_as_the_same_model() {
    let place = Place::trained(&[]);
    let want = place.eval(&place.path("run"));
    for format in ["saelens", "sparsify", "dictionary-learning", "interprot", "openai"] {
        let (folder, _) = place.export(format);
        let back = place.import(&folder, &format!("{format}.safetensors"));
        assert_eq!(place.eval(&back), want, "{format}");
        let ours: Vec<_> = tensors(&back);
        assert!(ours == tensors(&place.path("run/model.safetensors")), "{format}: tensors differ");
    }
}

#[test]
fn codes_with_signs_go_to_sparsify_and_come_back_and_to_no_other() {
    let place = Place::trained(&["--activation=abs-topk"]);
    let want = place.eval(&place.path("run"));
    let (folder, _) = place.export("sparsify");
    assert_eq!(json(folder.join("cfg.json"))["signed"], true);
    // As made by the library itself.
    std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
    let back = place.import(&folder, "back.safetensors");
    let bytes = std::fs::read(&back).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert!(header.metadata().as_ref().unwrap()["architecture"].contains("\"activation\":\"abs-topk\""));
    assert!(tensors(&back)[..2] == tensors(&place.path("run/model.safetensors"))[..2]);
    for format in ["saelens", "dictionary-learning", "interprot", "openai"] {
        let flag = format!("--format={format}");
        let (status, line) = sae_fails(["export", &place.name("run"), &flag, "-o", &place.name("no")]);
        assert!(status == 2 && line.contains("--format sparsify") && !place.path("no").exists(), "{line}");
    }
    let codes = place.name("codes.tsv");
    sae_ok([
        "encode",
        &place.name("run"),
        &place.name("data.h5"),
        "-o",
        &codes,
        "--format=tsv",
        "--device=cpu",
    ]);
    let values: Vec<f64> = std::fs::read_to_string(&codes)
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.rsplit('\t').next().unwrap().parse().unwrap())
        .collect();
    assert!(
        values.iter().any(|&v| v < 0.0)
            && values.iter().any(|&v| v > 0.0)
            && values.iter().all(|&v| v != 0.0)
    );
    assert!(want["l0"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_model_trained_elsewhere_is_read_without_what_export_keeps_beside_it() {
    let place = Place::trained(&[]);
    let (folder, _) = place.export("saelens");
    std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
    let back = place.import(&folder, "back.safetensors");
    let (got, want) = (place.eval(&back), place.eval(&place.path("run")));
    assert_eq!((&got["mse"], &got["l0"]), (&want["mse"], &want["l0"]));
    // Against the mean of these rows, about which they vary least, and not of the training rows, four in five of them.
    let ratio = got["fvu"].as_f64().unwrap() / want["fvu"].as_f64().unwrap();
    assert!((1.0..1.02).contains(&ratio), "{ratio}");

    let mut config = json(folder.join("cfg.json"));
    config["architecture"] = json!("jumprelu");
    std::fs::write(folder.join("cfg.json"), config.to_string()).unwrap();
    let out = place.name("no.safetensors");
    let (status, line) = sae_fails(["import", folder.to_str().unwrap(), "-o", &out]);
    assert!(status == 1 && line.contains("no tensor threshold") && !Path::new(&out).exists(), "{line}");
}

#[test]
fn what_is_in_the_way_is_kept() {
    let place = Place::trained(&[]);
    let (run, out) = (place.name("run"), place.name("saelens"));
    place.export("saelens");
    let (status, line) = sae_fails(["export", &run, "--format=saelens", "-o", &out]);
    assert!(status == 2 && line.contains("--overwrite"), "{line}");
    sae_ok(["export", &run, "--format=sparsify", "-o", &out, "--overwrite", "--quiet"]);
    assert!(!Path::new(&out).join("sae_weights.safetensors").exists());
    // The run itself is no export.
    let (status, line) = sae_fails(["export", &run, "--format=saelens", "-o", &run, "--overwrite"]);
    assert!(status == 2 && place.path("run/model.safetensors").is_file(), "{line}");
    let left = std::fs::read_dir(place.folder.path()).unwrap().count();
    assert_eq!(left, 3, "a temporary folder was left");
}

#[test]
fn a_damaged_pt_is_an_error_of_one_line() {
    let place = Place::trained(&[]);
    let (folder, _) = place.export("openai");
    let file = folder.join("autoencoder.pt");
    let whole = std::fs::read(&file).unwrap();
    let out = place.name("x.safetensors");
    let from = file.to_str().unwrap();
    for cut in [0, 10, 300, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        sae_fails(["import", from, "--format=openai", "-o", &out]);
    }
    // A pickle that calls something else than a tensor's constructor.
    let at = whole.windows(17).position(|w| w == b"_rebuild_tensor_v").unwrap();
    let mut other = whole.clone();
    other[at..at + 17].copy_from_slice(b"_rebuild_nothing_");
    std::fs::write(&file, &other).unwrap();
    sae_fails(["import", from, "--format=openai", "-o", &out]);
    assert!(!Path::new(&out).exists());
}

/// Edits the settings of an exported model.
fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let mut config = json(folder.join(file));
    change(&mut config);
    std::fs::write(folder.join(file), config.to_string()).unwrap();
}

/// As SAELens before version 6 wrote a top k: flat, with an activation function, whatever the architecture is called.
fn make_old(config: &mut Value) {
    let map = config.as_object_mut().unwrap();
    let k = map.remove("k").unwrap();
    map.remove("metadata");
    map.remove("rescale_acts_by_decoder_norm");
    map.remove("reshape_activations");
    map.insert("architecture".into(), json!("standard"));
    map.insert("activation_fn_str".into(), json!("topk"));
    map.insert("activation_fn_kwargs".into(), json!({ "k": k }));
    map.insert("finetuning_scaling_factor".into(), json!(false));
    map.insert("hook_name".into(), json!("blocks.3.hook_resid_post"));
    map.insert("sae_lens_training_version".into(), json!("3.23.4"));
    map.insert("prepend_bos".into(), json!(true));
}

#[test]
fn a_top_k_of_saelens_before_version_6_is_a_top_k() {
    let place = Place::trained(&[]);
    let (folder, _) = place.export("saelens");
    std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
    edit(&folder, "cfg.json", make_old);
    let want = place.eval(&place.path("run"));
    let got = place.eval(&place.import(&folder, "old.safetensors"));
    assert_eq!((&got["mse"], &got["l0"]), (&want["mse"], &want["l0"]));
    // The name that it had before, and no architecture yet.
    edit(&folder, "cfg.json", |config| {
        let map = config.as_object_mut().unwrap();
        let name = map.remove("activation_fn_str").unwrap();
        map.insert("activation_fn".into(), name);
        map.remove("architecture");
    });
    let got = place.eval(&place.import(&folder, "older.safetensors"));
    assert_eq!((&got["mse"], &got["l0"]), (&want["mse"], &want["l0"]));
}

/// The settings that the most used SAELens models, the residual streams of GPT-2 small, were published with, less sizes.
const PUBLISHED: &str = r#"{"model_name": "gpt2-small", "hook_point": "blocks.0.hook_resid_pre", "hook_point_layer": 0,
    "hook_point_head_index": null, "dataset_path": "Skylion007/openwebtext", "is_dataset_tokenized": false,
    "context_size": 128, "use_cached_activations": false, "cached_activations_path": "activations/Skylion007",
    "n_batches_in_buffer": 128, "total_training_tokens": 300000000, "store_batch_size": 32, "device": "mps", "seed": 42,
    "dtype": "torch.float32", "b_dec_init_method": "geometric_median", "expansion_factor": 32,
    "from_pretrained_path": null, "l1_coefficient": 8e-05, "lr": 0.0004, "lr_scheduler_name": null,
    "lr_warm_up_steps": 5000, "train_batch_size": 4096, "use_ghost_grads": false, "feature_sampling_window": 1000,
    "feature_sampling_method": null, "resample_batches": 1028, "feature_reinit_scale": 0.2,
    "dead_feature_window": 5000, "dead_feature_estimation_method": "no_fire", "dead_feature_threshold": 1e-08,
    "log_to_wandb": true, "wandb_project": "mats_sae_training", "wandb_entity": null, "wandb_log_frequency": 100,
    "n_checkpoints": 10, "checkpoint_path": "checkpoints/y1t51byy", "tokens_per_buffer": 67108864,
    "run_name": "24576-L1-8e-05-LR-0.0004-Tokens-3.000e+08"}"#;

#[test]
fn settings_of_saelens_that_only_its_training_uses_are_no_obstacle() {
    let place = Place::trained(&["--no-normalize", "--inference=relu", "--anneal-steps=0"]);
    let (folder, _) = place.export("saelens");
    std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
    edit(&folder, "cfg.json", |config| {
        *config = serde_json::from_str(PUBLISHED).unwrap();
        (config["d_in"], config["d_sae"]) = (json!(D), json!(M));
    });
    let want = place.eval(&place.path("run"));
    let got = place.eval(&place.import(&folder, "published.safetensors"));
    assert_eq!((&got["mse"], &got["l0"]), (&want["mse"], &want["l0"]));

    // What `TrainingSAE` of version 6 writes.
    let place = Place::trained(&["--no-normalize"]);
    let (folder, _) = place.export("saelens");
    std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
    edit(&folder, "cfg.json", |config| {
        config["decoder_init_norm"] = json!(0.1);
        config["use_sparse_activations"] = json!(true);
        config["aux_loss_coefficient"] = json!(1.0);
    });
    let want = place.eval(&place.path("run"));
    let got = place.eval(&place.import(&folder, "training.safetensors"));
    assert_eq!((&got["mse"], &got["l0"]), (&want["mse"], &want["l0"]));
}

#[test]
fn a_top_k_of_saelens_before_version_6_is_one_whatever_says_so() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 4] = [
        ("an architecture", |c| {
            c["architecture"] = json!("topk");
            c.as_object_mut().unwrap().remove("activation_fn_str");
        }),
        ("an activation function beside another architecture", |c| c["architecture"] = json!("jumprelu")),
        ("a flat version", |c| c["sae_lens_version"] = json!("5.11.0")),
        ("a version in the metadata", |c| c["metadata"] = json!({ "sae_lens_version": "5.11.0" })),
    ];
    let place = Place::trained(&[]);
    let (folder, _) = place.export("saelens");
    std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
    let want = place.eval(&place.path("run"));
    edit(&folder, "cfg.json", make_old);
    let old = json(folder.join("cfg.json"));
    for (what, change) in cases {
        edit(&folder, "cfg.json", |config| {
            *config = old.clone();
            change(config);
        });
        let _ = std::fs::remove_file(place.path("old.safetensors"));
        let got = place.eval(&place.import(&folder, "old.safetensors"));
        assert_eq!((&got["mse"], &got["l0"]), (&want["mse"], &want["l0"]), "{what}");
    }
}

#[test]
fn what_changes_the_codes_and_is_not_understood_is_refused_by_name() {
    type Change = fn(&mut Value);
    type Case = (&'static str, bool, &'static str, Change, &'static str);
    let cases: [Case; 22] = [
        ("saelens", false, "cfg.json", |c| c["architecture"] = json!("abstopk"), "abstopk"),
        ("saelens", false, "cfg.json", |c| c["architecture"] = json!("transcoder"), "transcoder"),
        (
            "saelens",
            false,
            "cfg.json",
            |c| c["normalize_activations"] = json!("expected_average_only_in"),
            "--ignore normalize_activations",
        ),
        (
            "saelens",
            false,
            "cfg.json",
            |c| c["normalize_activations"] = json!("covariance_whitening"),
            "--ignore normalize_activations",
        ),
        ("saelens", true, "cfg.json", |c| c["normalize_activations"] = json!(true), "normalize_activations"),
        ("saelens", true, "cfg.json", |c| c["activation_fn_kwargs"]["postact_fn"] = json!("x"), "postact_fn"),
        ("saelens", true, "cfg.json", |c| c["hook_name"] = json!("blocks.0.attn.hook_z"), "hook_z"),
        ("saelens", true, "cfg.json", |c| c["activation_fn_str"] = json!("tanh-relu"), "tanh-relu"),
        (
            "saelens",
            true,
            "cfg.json",
            |c| {
                (c["architecture"], c["activation_fn_str"]) = (json!("gated"), json!("relu"));
                c.as_object_mut().unwrap().remove("activation_fn_kwargs");
            },
            "gated",
        ),
        ("saelens", false, "cfg.json", |c| c["reshape_activations"] = json!("hook_z"), "reshape_activations"),
        (
            "saelens",
            false,
            "cfg.json",
            |c| c["normalize_activations"] = json!("constant_norm_rescale"),
            "constant_norm_rescale",
        ),
        ("saelens", false, "cfg.json", |c| c["input_scale"] = json!(2.5), "input_scale"),
        ("sparsify", false, "cfg.json", |c| c["gram_lookup"] = json!(true), "gram_lookup"),
        ("sparsify", false, "cfg.json", |c| c["skip_connection"] = json!(true), "skip_connection"),
        ("sparsify", false, "cfg.json", |c| c["activation"] = json!("groupmax"), "groupmax"),
        ("sparsify", false, "cfg.json", |c| c["rank_by"] = json!("size"), "rank_by"),
        (
            "dictionary-learning",
            false,
            "config.json",
            |c| c["trainer"]["dict_class"] = json!("BatchTopKSAE"),
            "threshold -1, which is unset",
        ),
        (
            "dictionary-learning",
            false,
            "config.json",
            |c| c["trainer"]["dict_class"] = json!("AutoEncoderNew"),
            "AutoEncoderNew",
        ),
        ("dictionary-learning", false, "config.json", |c| c["trainer"]["k"] = json!("four"), "`k`"),
        ("dictionary-learning", false, "config.json", |c| c["trainer"]["k"] = json!(K + 1), "k is"),
        (
            "dictionary-learning",
            false,
            "config.json",
            |c| c["trainer"]["dict_class"] = json!("AutoEncoder"),
            "AutoEncoder",
        ),
        (
            "dictionary-learning",
            false,
            "config.json",
            |c| c["trainer"] = json!({ "trainer_class": "BatchTopKTrainer", "k": K }),
            "BatchTopKTrainer",
        ),
    ];
    let place = Place::trained(&["--no-normalize"]);
    for (format, old, file, change, name) in cases {
        let _ = std::fs::remove_dir_all(place.path(format));
        let (folder, _) = place.export(format);
        let _ = std::fs::remove_file(folder.join("topk_sae.json"));
        if old {
            edit(&folder, file, make_old);
        }
        edit(&folder, file, change);
        let out = place.name("no.safetensors");
        let (status, line) = sae_fails(["import", folder.to_str().unwrap(), "-o", &out]);
        assert!(status == 1 && line.contains(name) && !Path::new(&out).exists(), "{format}, {name}: {line}");
    }
}

#[test]
fn relu_codes_of_dictionary_learning_are_those_that_its_loader_gives() {
    let place = Place::trained(&["--no-normalize", "--inference=relu", "--anneal-steps=0"]);
    let (folder, _) = place.export("dictionary-learning");
    let lengths = |model: &Path| -> Vec<f64> {
        let all: BTreeMap<String, Vec<u8>> = tensors(model).into_iter().collect();
        let row = |row: &[u8]| -> f64 {
            let value = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().unwrap()));
            row.chunks_exact(4).map(|b| value(b).powi(2)).sum::<f64>().sqrt()
        };
        all["w_dec"].chunks_exact(4 * D).map(row).collect()
    };
    let unit = |length: &f64| (length - 1.0).abs() < 1e-5;
    // An export of ours comes back as it was.
    let kept = place.import(&folder, "own.safetensors");
    assert_eq!(place.eval(&kept), place.eval(&place.path("run")));
    assert!(!lengths(&kept).iter().all(unit));
    std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
    let back = place.import(&folder, "foreign.safetensors");
    assert!(lengths(&back).iter().all(unit), "load_dictionary scales decoder rows to length 1");
    let (got, want) = (place.eval(&back), place.eval(&place.path("run")));
    assert!((got["mse"].as_f64().unwrap() / want["mse"].as_f64().unwrap() - 1.0).abs() < 1e-4);
    assert_eq!(got["l0"], want["l0"]);
}

#[test]
fn a_setting_that_a_person_has_looked_at_is_left_out() {
    let place = Place::trained(&["--no-normalize"]);
    let (folder, _) = place.export("sparsify");
    std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
    edit(&folder, "cfg.json", |c| {
        c["rank_by"] = json!("size");
        c["wandb"] = json!("x");
        // These switch nothing on.
        c["other"] = json!(null);
        c["more"] = json!(false);
    });
    let (out, from) = (place.name("no.safetensors"), folder.to_str().unwrap().to_owned());
    let (_, line) = sae_fails(["import", &from, "-o", &out]);
    assert!(line.contains("`--ignore rank_by,wandb`"), "{line}");
    sae_ok(["import", &from, "-o", &out, "--ignore", "rank_by,wandb"]);
    assert_eq!(place.eval(Path::new(&out))["mse"], place.eval(&place.path("run"))["mse"]);
}

#[test]
fn a_scale_of_codes_or_activations_beside_saelens_is_refused() {
    let place = Place::trained(&[]);
    let (folder, _) = place.export("saelens");
    std::fs::write(folder.join("activation_scaler.json"), "{\"scaling_factor\": 3}").unwrap();
    let out = place.name("no.safetensors");
    let from = folder.to_str().unwrap().to_owned();
    let (_, line) = sae_fails(["import", &from, "-o", &out]);
    assert!(line.contains("activation_scaler.json"), "{line}");
    std::fs::remove_file(folder.join("activation_scaler.json")).unwrap();
    for (factor, fits) in [(1.0f32, true), (2.0, false)] {
        let all = tensors(&folder.join("sae_weights.safetensors"));
        let shapes = shapes(&folder.join("sae_weights.safetensors"));
        let factors: Vec<u8> = [factor; M].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut views: Vec<_> = all
            .iter()
            .filter(|(name, _)| name != "scaling_factor")
            .map(|(name, bytes)| {
                let view = safetensors::tensor::TensorView::new(Dtype::F32, shapes[name].1.clone(), bytes);
                (name.clone(), view.unwrap())
            })
            .collect();
        let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![M], &factors).unwrap();
        views.push(("scaling_factor".into(), view));
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.join("sae_weights.safetensors"), bytes).unwrap();
        let result = sae(["import", &from, "-o", &out, "--overwrite"]);
        assert_eq!(result.status.success(), fits, "{factor}: {}", String::from_utf8_lossy(&result.stderr));
    }
}

#[test]
fn a_threshold_without_a_class_may_be_a_batch_top_k_and_is_refused() {
    let place = Place::trained(&["--no-normalize"]);
    let (folder, _) = place.export("dictionary-learning");
    let path = folder.join("ae.pt");
    let weights = pt::read(&path).unwrap();
    assert_eq!(weights.tensors["threshold"].values, [-1.0]);
    // Unset, it is a top k, whatever is beside it.
    std::fs::remove_file(folder.join("config.json")).unwrap();
    let out = place.name("back.safetensors");
    sae_ok(["import", path.to_str().unwrap(), "-o", &out]);
    let bytes: Vec<(&str, Vec<u8>)> = ["b_dec", "encoder.weight", "encoder.bias", "decoder.weight"]
        .into_iter()
        .map(|name| (name, weights.tensors[name].values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let k = 4i32.to_le_bytes();
    let mut items: Vec<(&str, pt::Item)> = bytes
        .iter()
        .map(|(name, bytes)| {
            (*name, pt::Item::Tensor(Dtype::F32, weights.tensors[*name].shape.clone(), bytes))
        })
        .collect();
    items.push(("k", pt::Item::Tensor(Dtype::I32, vec![], &k)));
    items.push(("threshold", pt::Item::f32(vec![], &[0.5])));
    pt::write(&path, &items).unwrap();
    let (_, line) = sae_fails(["import", path.to_str().unwrap(), "-o", &out, "--overwrite"]);
    assert!(line.contains("BatchTopKSAE") && line.contains("--ignore threshold"), "{line}");
    sae_ok(["import", path.to_str().unwrap(), "-o", &out, "--overwrite", "--ignore=threshold"]);
}
