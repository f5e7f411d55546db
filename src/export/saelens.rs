//! SAELens 6: `cfg.json` and `sae_weights.safetensors`, read by `SAE.load_from_disk` (`sae_lens/saes/sae.py`,
//! `topk_sae.py`, `standard_sae.py`, `jumprelu_sae.py` of 6.54).
//!
//! `W_enc` (D, M), `W_dec` (M, D), `b_dec` (D), `b_enc` (M), and for `jumprelu` `threshold` (M). BatchTopK and Matryoshka
//! have a class for training alone: for inference they are saved as `jumprelu` with one threshold for all latents, and
//! `metadata` says what they were. A save of their training has `topk_threshold` (float64, no dimensions) instead, in units of
//! scores times the lengths of decoder rows (`batchtopk_sae.py`, `matryoshka_batchtopk_sae.py`). Its `layer_norm` is our normalisation: unbiased standard
//! deviation, 1e-5 added to it, and the standard deviation without it on the way back.

use super::foreign::{Foreign, ForeignActivation};
use super::tensors::{ForeignSettings, Tensors, not_representable, wrong};
use super::{Notes, other_eps, transpose, write_json, write_tensors};
use crate::analysis::codes::Firing;
use crate::error::Result;
use crate::files::Tensor;
use crate::model::Params;
use crate::model::file::ModelMeta;
use crate::spec::{Activation, Forward, Inference};
use serde_json::json;
use std::path::Path;

pub(super) const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae_weights.safetensors";
/// Log10 of the firing rates, tensor `sparsity` (M): optional, next to a model that SAELens trained itself.
pub(super) const SPARSITY: &str = "sparsity.safetensors";
/// A scale of the activations that a training save keeps apart.
const SCALER: &str = "activation_scaler.json";
/// Added to a rate before its logarithm (`sae_lens/training/sae_trainer.py`): a latent that never fires has -10.
const RATE_EPS: f64 = 1e-10;
/// The setting of what is done to activations before the encoder.
const NORMALIZE: &str = "normalize_activations";
/// Architectures of training, whose thresholds are one number.
const BATCH: &str = "batchtopk";
const MATRYOSHKA: &str = "matryoshka_batchtopk";
/// What the metadata call the architecture of the training, and its settings.
const TRAINED_AS: &str = "training_architecture";
const DETAILS: &str = "training_architecture_details";
/// Version of the format: without one of at least 6 SAELens takes its reader of old models.
const VERSION: &str = "6.18.0";

/// Writes the folder; firing rates, if known, into `sparsity.safetensors`.
pub(super) fn write(
    folder: &Path,
    params: &Params,
    meta: &ModelMeta,
    firing: Option<&Firing>,
) -> Result<Notes> {
    let (d, m) = (params.d_in, params.n_latents);
    let mut config = json!({
        "architecture": "topk",
        "d_in": d,
        "d_sae": m,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": true,
        "normalize_activations": if meta.architecture.forward.normalize { "layer_norm" } else { "none" },
        "reshape_activations": "none",
        "metadata": { "sae_lens_version": VERSION, "sae_lens_training_version": VERSION },
    });
    match meta.architecture.forward.inference {
        Inference::Topk => {
            config["k"] = json!(meta.architecture.forward.k);
            config["rescale_acts_by_decoder_norm"] = json!(false);
        }
        Inference::Threshold => config["architecture"] = json!("jumprelu"),
        Inference::Relu => config["architecture"] = json!("standard"),
    }
    if let Some((architecture, details)) = training(&meta.architecture.forward) {
        let architecture = architecture.map_or_else(|| config["architecture"].clone(), |name| json!(name));
        config["metadata"][TRAINED_AS] = architecture;
        config["metadata"][DETAILS] = details;
    }
    write_json(&folder.join(CONFIG), &config)?;
    let w_enc = transpose(&params.w_enc, m, d);
    let mut tensors = vec![
        Tensor::f32("W_enc".into(), vec![d, m], &w_enc),
        Tensor::f32("W_dec".into(), vec![m, d], params.decoder()),
        Tensor::f32("b_enc".into(), vec![m], &params.b_lat),
        Tensor::f32("b_dec".into(), vec![d], &params.b_pre),
    ];
    if let Some(threshold) = &params.threshold {
        tensors.push(Tensor::f32("threshold".into(), vec![m], threshold));
    }
    write_tensors(&folder.join(WEIGHTS), &tensors)?;
    if let Some(firing) = firing {
        let rate = |n: &u64| *n as f64 / firing.rows as f64;
        let logs: Vec<f32> = firing.fired.iter().map(|n| (rate(n) + RATE_EPS).log10() as f32).collect();
        write_tensors(&folder.join(SPARSITY), &[Tensor::f32("sparsity".into(), vec![m], &logs)])?;
    }
    let load = "from sae_lens import SAE\nsae = SAE.load_from_disk(DIR)\ncodes = sae.encode(x); recon = sae.decode(codes)";
    Ok(Notes { load: load.into(), warning: other_eps("SAELens", meta) })
}

/// What the metadata say of a training that inference does not show: its architecture, if it is another one, and settings.
fn training(forward: &Forward) -> Option<(Option<&'static str>, serde_json::Value)> {
    let widths = forward.prefixes.ends();
    match (forward.activation, widths.is_empty()) {
        (Activation::BatchTopk, true) => Some((Some(BATCH), json!({ "k": forward.k }))),
        (Activation::BatchTopk, false) => {
            Some((Some(MATRYOSHKA), json!({ "k": forward.k, "matryoshka_widths": widths })))
        }
        (_, false) => Some((None, json!({ "matryoshka_widths": widths }))),
        (_, true) => None,
    }
}

/// Settings that change no code: sizes and types that the tensors have, and where the activations came from. Old files have
/// some of them beside the others, new ones in `metadata`.
const HARMLESS: &str = "context_size d_in d_sae dataset_path dataset_trust_remote_code device dtype exclude_special_tokens \
    hook_head_index hook_layer hook_name hook_point hook_point_head_index hook_point_layer metadata model_class_name \
    model_from_pretrained_kwargs model_name neuronpedia_id prepend_bos release sae_lens_training_version sae_lens_version \
    seqpos_slice training_tokens";
/// Settings of training alone. Versions before 3 wrote all of the runner's (`LanguageModelSAERunnerConfig` of 1.3 to 5.11
/// and what came before it), `TrainingSAE` of version 6 still writes those of its own.
const TRAINING: &str = "act_store_device adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient \
    b_dec_init_method cached_activations_path checkpoint_path compile_llm compile_sae dead_feature_estimation_method \
    dead_feature_threshold dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm \
    decoder_orthogonal_init eval_batch_size_prompts eval_every_n_wandb_logs expansion_factor feature_reinit_scale \
    feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path hook_eval \
    hook_point_eval init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold \
    jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient l0_warm_up_steps \
    l1_coefficient l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb \
    log_to_wandb lp_norm lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps model_kwargs \
    mse_loss_normalization n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles noise_scale \
    normalize_sae_decoder pre_act_loss_coefficient resample_batches resume run_name sae_compilation_mode \
    scale_sparsity_penalty_by_decoder_norm seed store_batch_size store_batch_size_prompts streaming target_l0 \
    tokens_per_buffer topk_threshold_lr total_training_tokens train_batch_size train_batch_size_tokens \
    use_cached_activations use_ghost_grads use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity \
    wandb_id wandb_log_frequency wandb_project";
/// Settings that [`read`] takes into account.
const USED: [&str; 11] = [
    "activation_fn",
    "activation_fn_kwargs",
    "activation_fn_str",
    "apply_b_dec_to_input",
    "architecture",
    "finetuning_scaling_factor",
    "k",
    "matryoshka_widths",
    NORMALIZE,
    "rescale_acts_by_decoder_norm",
    "reshape_activations",
];

/// Whether SAELens reads this file as one of before version 6: it has no version, or a smaller one.
fn is_old(config: &ForeignSettings) -> Result<bool> {
    let version = match (config.text("sae_lens_version")?, config.inner("metadata")?) {
        (None, Some(metadata)) => metadata.text("sae_lens_version")?,
        (version, _) => version,
    };
    let major =
        version.as_deref().and_then(|v| v.split('.').next()).and_then(|major| major.parse::<u32>().ok());
    Ok(major.is_none_or(|major| major < 6))
}

/// Codes by `architecture`; before version 6 a top k was an activation function, whatever the architecture was called
/// (`sae_lens/loading/pretrained_sae_loaders.py`, `handle_pre_6_0_config`).
fn activation(config: &ForeignSettings, path: &Path, ignored: &[String]) -> Result<ForeignActivation> {
    let refuse = |what: String| Err(not_representable(path, &what));
    let function = match config.text("activation_fn_str")? {
        Some(name) => Some(name),
        None => config.text("activation_fn")?,
    };
    let architecture = config.text("architecture")?;
    let old = is_old(config)?;
    match function.as_deref() {
        None | Some("relu" | "topk") => {}
        Some(other) => return refuse(format!("the activation function `{other}`")),
    }
    if old && (function.as_deref() == Some("topk") || architecture.as_deref() == Some("topk")) {
        let mut k = config.count("k")?;
        if let Some(arguments) = config.inner("activation_fn_kwargs")? {
            arguments.nothing_else(&["k"], ignored)?;
            k = arguments.count("k")?.or(k);
        }
        return Ok(ForeignActivation::Topk(k));
    }
    let activation = match architecture.as_deref() {
        Some("topk") => ForeignActivation::Topk(config.count("k")?),
        // The first files had no architecture yet.
        None if old => ForeignActivation::Relu,
        Some("standard") if function.as_deref() != Some("topk") => ForeignActivation::Relu,
        Some("jumprelu") if function.as_deref() != Some("topk") => trained_as(config)?,
        Some(BATCH | MATRYOSHKA) => ForeignActivation::BatchTopk(mean_count(config)?),
        Some(name @ ("standard" | "jumprelu")) => {
            return refuse(format!("architecture `{name}` with the activation function `topk`"));
        }
        other => {
            let name = other.unwrap_or_default();
            return refuse(format!(
                "architecture `{name}`; only topk, standard, jumprelu, {BATCH} and {MATRYOSHKA} can be read"
            ));
        }
    };
    if let Some(arguments) = config.inner("activation_fn_kwargs")? {
        arguments.nothing_else(&[], ignored)?;
    }
    Ok(activation)
}

/// `k` of a batch, the mean of its rows and not always whole.
fn mean_count(config: &ForeignSettings) -> Result<Option<usize>> {
    Ok(config.number("k")?.map(|k| k.ceil() as usize))
}

/// What a `jumprelu` was trained as.
fn trained_as(config: &ForeignSettings) -> Result<ForeignActivation> {
    let Some(metadata) = config.inner("metadata")? else { return Ok(ForeignActivation::JumpRelu(None)) };
    let details = metadata.inner(DETAILS)?;
    Ok(match metadata.text(TRAINED_AS)?.as_deref() {
        Some(BATCH | MATRYOSHKA) => {
            ForeignActivation::BatchTopk(details.as_ref().map(mean_count).transpose()?.flatten())
        }
        _ => ForeignActivation::JumpRelu(None),
    })
}

/// The prefixes of a Matryoshka model: of a save of its training, or as the metadata tell of it.
fn widths(config: &ForeignSettings) -> Result<Vec<usize>> {
    let metadata = config.inner("metadata")?;
    let details = metadata.map(|metadata| metadata.inner(DETAILS)).transpose()?.flatten();
    let told = details.map(|details| details.counts("matryoshka_widths")).transpose()?.flatten();
    Ok(config.counts("matryoshka_widths")?.or(told).unwrap_or_default())
}

/// Thresholds (M): `threshold`; `log_threshold` in saves of training before 6.48; one number for all latents where a batch
/// decided.
fn thresholds(tensors: &mut Tensors, m: usize, activation: ForeignActivation) -> Result<Option<Vec<f32>>> {
    if !activation.has_thresholds() {
        return Ok(None);
    }
    let has = |name: &str| tensors.tensors.contains_key(name);
    Ok(Some(if has("topk_threshold") {
        vec![tensors.take("topk_threshold", &[])?[0]; m]
    } else if has("log_threshold") {
        tensors.take("log_threshold", &[m])?.into_iter().map(f32::exp).collect()
    } else {
        tensors.take("threshold", &[m])?
    }))
}

/// Refuses what is done to activations before the encoder, and is not ours; true where each row is normalised.
fn normalized(config: &ForeignSettings, folder: &Path, path: &Path, ignored: &[String]) -> Result<bool> {
    let refuse = |what: String| Err(not_representable(path, &what));
    let scaler = folder.join(SCALER);
    if scaler.exists() {
        return Err(not_representable(&scaler, "a scale of the activations"));
    }
    let hooked = ["hook_name", "hook_point"]
        .iter()
        .any(|key| config.text(key).ok().flatten().is_some_and(|name| name.contains("hook_z")));
    let reshape = config.text("reshape_activations")?;
    if let Some(reshape) = reshape.as_ref().filter(|r| *r != "none") {
        return refuse(format!("reshape_activations `{reshape}`"));
    }
    // Old files of attention heads were reshaped without saying so.
    if hooked && reshape.is_none() {
        return refuse("activations of a hook_z, which SAELens reshapes".into());
    }
    // Once true or false.
    let how = match config.flag(NORMALIZE) {
        Ok(Some(true)) => Some("expected_average_only_in".to_owned()),
        Ok(_) => None,
        Err(_) => config.text(NORMALIZE)?,
    };
    // What `SAE.run_time_activation_norm_fn_in` does to rows, or training did, of which a loaded model knows nothing.
    let done = match how.as_deref() {
        None | Some("none") => return Ok(false),
        Some("layer_norm") => return Ok(true),
        _ if ignored.iter().any(|name| name == NORMALIZE) => return Ok(false),
        Some("constant_norm_rescale") => "multiply each row by sqrt(D) over its length",
        Some("expected_average_only_in") => {
            "multiply all rows by sqrt(D) over the mean length of training rows, as its training did"
        }
        Some("covariance_whitening") => "whiten rows as its training did",
        Some(other) => return refuse(format!("{NORMALIZE} `{other}`")),
    };
    Err(wrong(
        path,
        format!(
            "has {NORMALIZE} `{}`, which is no normalisation of sae: {done}, and import it for such rows with `--ignore {NORMALIZE}`",
            how.unwrap_or_default()
        ),
    ))
}

pub(super) fn read(folder: &Path, ignored: &[String]) -> Result<Foreign> {
    let path = folder.join(CONFIG);
    let config = ForeignSettings::read(&path)?;
    let activation = activation(&config, &path, ignored)?;
    let normalize = normalized(&config, folder, &path, ignored)?;
    let harmless: Vec<&str> =
        [HARMLESS, TRAINING].iter().flat_map(|names| names.split_whitespace()).collect();
    config.nothing_else(&[&harmless[..], &USED].concat(), ignored)?;
    let mut tensors = Tensors::read(&folder.join(WEIGHTS))?;
    // A save of a training that ranks by scores times lengths of decoder rows unless it says otherwise.
    let batch = tensors.tensors.contains_key("topk_threshold");
    let (d, m, w_enc) = tensors.matrix("W_enc")?;
    let mut model = Foreign {
        d_in: d,
        n_latents: m,
        w_enc: transpose(&w_enc, d, m),
        w_dec: tensors.take("W_dec", &[m, d])?,
        b_enc: tensors.take("b_enc", &[m])?,
        b_in: vec![0.0; d],
        b_dec: tensors.take("b_dec", &[d])?,
        activation,
        threshold: thresholds(&mut tensors, m, activation)?,
        prefixes: widths(&config)?,
        normalize: Some(normalize),
    };
    if tensors.tensors.contains_key("scaling_factor")
        && tensors.take("scaling_factor", &[m])?.iter().any(|factor| *factor != 1.0)
    {
        return Err(not_representable(
            &path,
            "a scaling_factor of codes other than 1 (finetuning_scaling_factor)",
        ));
    }
    if config.flag("apply_b_dec_to_input")?.unwrap_or(true) {
        model.b_in.clone_from(&model.b_dec);
    }
    if config.flag("rescale_acts_by_decoder_norm")?.unwrap_or(batch) {
        if !batch && !matches!(activation, ForeignActivation::Topk(_)) {
            return Err(not_representable(&path, "rescale_acts_by_decoder_norm in a model that is no top k"));
        }
        // The threshold is in units of the folded scores.
        model.fold_decoder_norms();
    }
    tensors.nothing_left(&[], ignored)?;
    Ok(model)
}
