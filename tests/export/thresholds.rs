//! Models whose codes are made by thresholds, and Matryoshka: names, shapes and types in both directions, and codes beside
//! the libraries' formulas in float64. What the libraries themselves give is in `tests/python/RESULTS.md`.

use super::made::*;
use super::*;
use safetensors::tensor::TensorView;
use topk_sae::model::Params;
use topk_sae::model::file::{self as model_file, ModelMeta, Provenance};
use topk_sae::spec::{Activation, Architecture, Forward, Inference, Prefixes};

/// A model of random numbers, of which about a tenth of the latents fire.
fn save(place: &Place, activation: Activation, thresholds: Vec<f32>, ends: &[u32]) -> (Params, String) {
    let params = Params {
        d_in: D,
        n_latents: M,
        w_enc: numbers(M * D, 1),
        w_dec: Some(numbers(M * D, 2)),
        b_pre: numbers(D, 3),
        b_lat: numbers(M, 4),
        threshold: Some(thresholds),
    };
    let forward = Forward {
        k: K,
        activation,
        inference: Inference::Threshold,
        normalize: false,
        norm_eps: 1e-5,
        prefixes: Prefixes::new(ends).unwrap(),
    };
    let architecture = Architecture { d_in: D, n_latents: M, tied: false, forward };
    let meta = ModelMeta { architecture, provenance: Provenance::default(), train_mean: vec![] };
    let path = place.name("made.safetensors");
    model_file::save(Path::new(&path), &params, &meta).unwrap();
    (params, path)
}

fn spread() -> Vec<f32> {
    numbers(M, 5).iter().map(|v| 1.0 + 0.5 * v).collect()
}

/// Codes (rows, M): scores of `x - b_in` above the thresholds, matrices as (M, D).
fn reference(w_enc: &[f32], b_enc: &[f32], b_in: &[f32], threshold: &[f32]) -> Vec<Vec<f64>> {
    let code = |row: &[f32]| -> Vec<f64> {
        let score = |j: usize| -> f64 {
            let products =
                (0..D).map(|i| f64::from(w_enc[j * D + i]) * (f64::from(row[i]) - f64::from(b_in[i])));
            products.sum::<f64>() + f64::from(b_enc[j])
        };
        let kept = |j: usize| Some(score(j)).filter(|z| *z > f64::from(threshold[j]).max(0.0)).unwrap_or(0.0);
        (0..M).map(kept).collect()
    };
    runs::low_rank(40, D).chunks_exact(D).map(code).collect()
}

fn reference_of(params: &Params) -> Vec<Vec<f64>> {
    reference(&params.w_enc, &params.b_lat, &params.b_pre, params.threshold.as_ref().unwrap())
}

fn export(place: &Place, model: &str, format: &str) -> PathBuf {
    let out = place.name(format);
    let _ = std::fs::remove_dir_all(&out);
    sae_ok(["export", model, "--format", format, "-o", &out]);
    place.path(format)
}

/// Imports with and without what an export keeps, and compares codes; returns the architecture read without.
fn assert_comes_back(place: &Place, folder: &Path, want: &[Vec<f64>]) -> Value {
    assert!(want.iter().flatten().any(|v| *v > 0.0) && want.iter().flatten().any(|v| *v == 0.0));
    let back = place.name("back.safetensors");
    for own in [true, false] {
        if !own {
            std::fs::remove_file(folder.join("topk_sae.json")).unwrap();
        }
        sae_ok(["import", folder.to_str().unwrap(), "-o", &back, "--overwrite"]);
        assert_same(&codes(place, Path::new(&back)), want, &format!("own {own}"));
    }
    architecture(Path::new(&back))
}

fn architecture(model: &Path) -> Value {
    let bytes = std::fs::read(model).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["architecture"]).unwrap()
}

fn pt_shapes(path: &Path) -> Vec<(String, Vec<usize>)> {
    pt::read(path).unwrap().tensors.into_iter().map(|(name, t)| (name, t.shape)).collect()
}

fn named(all: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    all.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

#[test]
fn saelens_gets_thresholds_as_jumprelu_and_what_the_training_was() {
    let place = Place::with_data(40, D);
    let (params, model) = save(&place, Activation::JumpRelu, spread(), &[]);
    let folder = export(&place, &model, "saelens");
    let names: [(&str, &[usize]); 5] =
        [("W_enc", &[D, M]), ("W_dec", &[M, D]), ("b_enc", &[M]), ("b_dec", &[D]), ("threshold", &[M])];
    assert_eq!(shapes(&folder.join("sae_weights.safetensors")), f32s(&names));
    let want = json!({
        "architecture": "jumprelu", "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": true, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": { "sae_lens_version": "6.18.0", "sae_lens_training_version": "6.18.0" },
    });
    assert_eq!(json(folder.join("cfg.json")), want);
    let got = assert_comes_back(&place, &folder, &reference_of(&params));
    assert_eq!((&got["activation"], &got["inference"]), (&json!("jumprelu"), &json!("threshold")));

    for (ends, architecture, details) in [
        (vec![], "batchtopk", json!({ "k": K })),
        (vec![8, 24, 64], "matryoshka_batchtopk", json!({ "k": K, "matryoshka_widths": [8, 24, 64] })),
    ] {
        let (params, model) = save(&place, Activation::BatchTopk, vec![0.75; M], &ends);
        let folder = export(&place, &model, "saelens");
        let config = json(folder.join("cfg.json"));
        assert_eq!(config["architecture"], "jumprelu");
        assert_eq!(config["metadata"]["training_architecture"], architecture);
        assert_eq!(config["metadata"]["training_architecture_details"], details);
        let got = assert_comes_back(&place, &folder, &reference_of(&params));
        assert_eq!((&got["activation"], &got["k"]), (&json!("batch-topk"), &json!(K)));
        assert_eq!(got.get("prefixes"), (!ends.is_empty()).then(|| json!(ends)).as_ref());
    }
}

#[test]
fn dictionary_learning_has_a_class_for_each_kind_of_threshold() {
    let place = Place::with_data(40, D);
    let (params, model) = save(&place, Activation::BatchTopk, vec![0.75; M], &[]);
    let folder = export(&place, &model, "dictionary-learning");
    let want = named(&[
        ("b_dec", &[D]),
        ("decoder.weight", &[D, M]),
        ("encoder.bias", &[M]),
        ("encoder.weight", &[M, D]),
        ("k", &[]),
        ("threshold", &[]),
    ]);
    assert_eq!(pt_shapes(&folder.join("ae.pt")), want);
    assert_eq!(pt::read(&folder.join("ae.pt")).unwrap().tensors["threshold"].values, [0.75]);
    let trainer = &json(folder.join("config.json"))["trainer"];
    assert_eq!((&trainer["dict_class"], &trainer["k"]), (&json!("BatchTopKSAE"), &json!(K)));
    let got = assert_comes_back(&place, &folder, &reference_of(&params));
    assert_eq!((&got["activation"], &got["k"]), (&json!("batch-topk"), &json!(K)));

    let (params, model) = save(&place, Activation::BatchTopk, vec![0.75; M], &[8, 24, 64]);
    let folder = export(&place, &model, "dictionary-learning");
    let want = named(&[
        ("W_dec", &[M, D]),
        ("W_enc", &[D, M]),
        ("b_dec", &[D]),
        ("b_enc", &[M]),
        ("group_sizes", &[3]),
        ("k", &[]),
        ("threshold", &[]),
    ]);
    assert_eq!(pt_shapes(&folder.join("ae.pt")), want);
    assert_eq!(pt::read(&folder.join("ae.pt")).unwrap().tensors["group_sizes"].values, [8.0, 16.0, 40.0]);
    assert_eq!(json(folder.join("config.json"))["trainer"]["dict_class"], "MatryoshkaBatchTopKSAE");
    let got = assert_comes_back(&place, &folder, &reference_of(&params));
    assert_eq!((&got["activation"], &got["prefixes"]), (&json!("batch-topk"), &json!([8, 24, 64])));

    // A threshold per latent, however it came about, has the class that has as many.
    for activation in [Activation::JumpRelu, Activation::BatchTopk] {
        let (params, model) = save(&place, activation, spread(), &[]);
        let folder = export(&place, &model, "dictionary-learning");
        let want = named(&[
            ("W_dec", &[M, D]),
            ("W_enc", &[D, M]),
            ("b_dec", &[D]),
            ("b_enc", &[M]),
            ("threshold", &[M]),
        ]);
        assert_eq!(pt_shapes(&folder.join("ae.pt")), want);
        let trainer = &json(folder.join("config.json"))["trainer"];
        assert!(trainer["dict_class"] == "JumpReluAutoEncoder" && trainer.get("k").is_none());
        // Nothing is subtracted from the input there: with a bias of 0 the file's own numbers give the codes.
        let file = pt::read(&folder.join("ae.pt")).unwrap().tensors;
        let bare = reference(&params.w_enc, &file["b_enc"].values, &[0.0; D], &spread());
        assert_same(&bare, &reference_of(&params), "b_enc");
        assert!(file["b_enc"].values != params.b_lat);
        assert_comes_back(&place, &folder, &reference_of(&params));
    }
}

#[test]
fn an_unset_threshold_and_groups_that_do_not_fit_are_refused() {
    let place = Place::with_data(40, D);
    let (_, model) = save(&place, Activation::BatchTopk, vec![0.75; M], &[8, 24, 64]);
    let folder = export(&place, &model, "dictionary-learning");
    let path = folder.join("ae.pt");
    let whole = pt::read(&path).unwrap().tensors;
    type Change = fn(&mut BTreeMap<String, Vec<f32>>);
    let cases: [(&str, Change); 3] = [
        ("unset", |t| drop(t.insert("threshold".into(), vec![-1.0]))),
        ("do not sum to 64", |t| drop(t.insert("group_sizes".into(), vec![8.0, 16.0, 41.0]))),
        ("must rise", |t| drop(t.insert("group_sizes".into(), vec![0.0, 24.0, 40.0]))),
    ];
    for (want, change) in cases {
        let mut values: BTreeMap<String, Vec<f32>> =
            whole.iter().map(|(name, t)| (name.clone(), t.values.clone())).collect();
        change(&mut values);
        let items: Vec<(&str, pt::Item)> = values
            .iter()
            .map(|(name, values)| (name.as_str(), pt::Item::f32(whole[name].shape.clone(), values)))
            .collect();
        pt::write(&path, &items).unwrap();
        let out = place.name("no.safetensors");
        let (_, line) = sae_fails(["import", folder.to_str().unwrap(), "-o", &out]);
        assert!(line.contains(want) && !Path::new(&out).exists(), "{want}: {line}");
    }
}

#[test]
fn libraries_without_thresholds_are_refused_by_name() {
    let place = Place::with_data(40, D);
    let (_, model) = save(&place, Activation::JumpRelu, spread(), &[]);
    for format in ["sparsify", "interprot", "openai", "esmc"] {
        let (status, line) = sae_fails(["export", &model, "--format", format, "-o", &place.name("no")]);
        assert!(status == 2 && line.contains("has no thresholds") && line.contains("saelens"), "{line}");
    }
    let (status, line) = sae_fails(["export", &model, "--format=gemma-scope", "-o", &place.name("no")]);
    assert!(status == 2 && line.contains("imported alone") && !place.path("no").exists(), "{line}");
}

/// A save of a training of SAELens 6.54, as `BatchTopKTrainingSAE.save_model` writes it; float64 where that does.
fn write_training_save(folder: &Path, change: impl FnOnce(&mut Value)) -> [Vec<f32>; 4] {
    std::fs::create_dir_all(folder).unwrap();
    let [w_enc, w_dec, b_enc, b_dec] =
        [numbers(D * M, 11), numbers(M * D, 12), numbers(M, 13), numbers(D, 14)];
    let threshold = 0.875f64.to_le_bytes();
    let all = [("W_enc", [D, M], &w_enc), ("W_dec", [M, D], &w_dec)];
    let bytes: Vec<Vec<u8>> = [&w_enc, &w_dec, &b_enc, &b_dec].map(|v| le_bytes(v)).into();
    let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).unwrap();
    let views = [
        (all[0].0, view(Dtype::F32, all[0].1.to_vec(), &bytes[0])),
        (all[1].0, view(Dtype::F32, all[1].1.to_vec(), &bytes[1])),
        ("b_enc", view(Dtype::F32, vec![M], &bytes[2])),
        ("b_dec", view(Dtype::F32, vec![D], &bytes[3])),
        ("topk_threshold", view(Dtype::F64, vec![], &threshold)),
    ];
    std::fs::write(folder.join("sae_weights.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    let mut config = json!({
        "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": true,
        "normalize_activations": "none", "reshape_activations": "none", "decoder_init_norm": 0.1, "k": 4.5,
        "use_sparse_activations": false, "aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": true,
        "topk_threshold_lr": 0.01, "architecture": "batchtopk",
        "metadata": { "sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12" },
    });
    change(&mut config);
    std::fs::write(folder.join("cfg.json"), config.to_string()).unwrap();
    [w_enc, w_dec, b_enc, b_dec]
}

#[test]
fn a_save_of_a_batch_top_k_training_is_folded() {
    let place = Place::with_data(40, D);
    let folder = place.path("training");
    let back = place.name("back.safetensors");
    let import = || {
        let _ = sae_ok(["import", folder.to_str().unwrap(), "-o", &back, "--overwrite"]);
        (codes(&place, Path::new(&back)), architecture(Path::new(&back)))
    };
    type Change = fn(&mut Value);
    let cases: [(bool, Change); 4] = [
        (true, |_| ()),
        (true, |c| drop(c.as_object_mut().unwrap().remove("rescale_acts_by_decoder_norm"))),
        (false, |c| c["rescale_acts_by_decoder_norm"] = json!(false)),
        (true, |c| {
            c["architecture"] = json!("matryoshka_batchtopk");
            c["matryoshka_widths"] = json!([16, 64]);
            c["use_matryoshka_aux_loss"] = json!(true);
        }),
    ];
    for (at, (folded, change)) in cases.into_iter().enumerate() {
        let [w_enc, w_dec, b_enc, b_dec] = write_training_save(&folder, change);
        // z |W_dec| where it is above the threshold.
        let norm = |j: usize| match folded {
            true => w_dec[j * D..(j + 1) * D].iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt(),
            false => 1.0,
        };
        let rows = runs::low_rank(40, D);
        let code = |row: &[f32]| -> Vec<f64> {
            (0..M)
                .map(|j| {
                    let products = (0..D)
                        .map(|i| (f64::from(row[i]) - f64::from(b_dec[i])) * f64::from(w_enc[i * M + j]));
                    norm(j) * (products.sum::<f64>() + f64::from(b_enc[j]))
                })
                .map(|z| if z > 0.875 { z } else { 0.0 })
                .collect()
        };
        let want: Vec<Vec<f64>> = rows.chunks_exact(D).map(code).collect();
        let (got, architecture) = import();
        assert_same(&got, &want, &format!("case {at}"));
        assert_eq!((&architecture["activation"], &architecture["k"]), (&json!("batch-topk"), &json!(5)));
        assert_eq!(architecture.get("prefixes"), (at == 3).then(|| json!([16, 64])).as_ref());
        let lengths: Vec<f64> = tensor(Path::new(&back), "w_dec")
            .chunks_exact(D)
            .map(|row| row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt())
            .collect();
        assert_eq!(lengths.iter().all(|length| (length - 1.0).abs() < 1e-5), folded);
    }
}

#[test]
fn both_gemma_scopes_are_read_with_nothing_subtracted() {
    let place = Place::with_data(40, D);
    let [w_enc, w_dec, b_enc, b_dec] =
        [numbers(D * M, 11), numbers(M * D, 12), numbers(M, 13), numbers(D, 14)];
    let threshold = spread();
    let encoder = topk_sae::export::transpose(&w_enc, D, M);
    let want = reference(&encoder, &b_enc, &[0.0; D], &threshold);
    let all: [(&str, &[usize], &[f32]); 5] = [
        ("w_enc", &[D, M], &w_enc),
        ("w_dec", &[M, D], &w_dec),
        ("b_enc", &[M], &b_enc),
        ("b_dec", &[D], &b_dec),
        ("threshold", &[M], &threshold),
    ];
    let (first, second) = (place.path("first"), place.path("second"));
    for folder in [&first, &second] {
        std::fs::create_dir(folder).unwrap();
    }
    let upper: Vec<(&str, &[usize], &[f32])> = all
        .iter()
        .map(|&(name, shape, values)| {
            (
                match name {
                    "w_enc" => "W_enc",
                    "w_dec" => "W_dec",
                    other => other,
                },
                shape,
                values,
            )
        })
        .collect();
    let back = place.name("back.safetensors");
    let check = |from: &Path| {
        sae_ok(["import", from.to_str().unwrap(), "-o", &back, "--overwrite"]);
        assert_same(&codes(&place, Path::new(&back)), &want, &from.display().to_string());
        // The bias of the decoder is that of the reconstruction.
        assert_eq!(tensor(Path::new(&back), "b_pre"), b_dec);
        architecture(Path::new(&back))
    };
    for names in [&upper[..], &all[..]] {
        write_npz(&first.join("params.npz"), names);
        assert_eq!(check(&first)["activation"], "jumprelu");
        check(&first.join("params.npz"));
    }
    write(&second.join("params.safetensors"), &all);
    check(&second);
    let config = json!({
        "hf_hook_point_in": "model.layers.17.output", "hf_hook_point_out": "model.layers.17.output", "width": M,
        "model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", "l0": 20, "affine_connection": false,
        "type": "sae",
    });
    std::fs::write(second.join("config.json"), config.to_string()).unwrap();
    assert_eq!(check(&second)["k"], 20);
    check(&second.join("params.safetensors"));

    type Change = fn(&mut Value);
    let cases: [(&str, Change); 5] = [
        ("transcoder", |c| c["type"] = json!("transcoder")),
        ("hf_hook_point_out", |c| {
            c["hf_hook_point_out"] = json!("model.layers.17.post_feedforward_layernorm.output")
        }),
        ("affine_connection", |c| c["affine_connection"] = json!(true)),
        ("architecture `topk`", |c| c["architecture"] = json!("topk")),
        ("input_scale", |c| c["input_scale"] = json!(2.0)),
    ];
    let refused = |name: &str| {
        let (_, line) = sae_fails(["import", second.to_str().unwrap(), "-o", &place.name("no")]);
        assert!(line.contains(name) && !place.path("no").exists(), "{name}: {line}");
    };
    for (name, change) in cases {
        let mut changed = config.clone();
        change(&mut changed);
        std::fs::write(second.join("config.json"), changed.to_string()).unwrap();
        refused(name);
    }
    std::fs::write(second.join("config.json"), config.to_string()).unwrap();
    let square = numbers(D * D, 15);
    let more = [&all[..], &[("affine_skip_connection", &[D, D][..], &square[..])]].concat();
    write(&second.join("params.safetensors"), &more);
    refused("affine_skip_connection");
    let factors = vec![2.0; M];
    write(
        &second.join("params.safetensors"),
        &[&all[..], &[("scaling_factor", &[M][..], &factors[..])]].concat(),
    );
    refused("scaling_factor");
}
