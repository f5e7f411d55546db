//! SAELens 6: `cfg.json` and `sae_weights.safetensors`, read by `SAE.load_from_disk` (`sae_lens/saes/sae.py`,
//! `topk_sae.py`, `standard_sae.py` of 6.54).
//!
//! `W_enc` (D, M), `W_dec` (M, D), `b_dec` (D), `b_enc` (M). Its `layer_norm` is our normalisation: unbiased standard
//! deviation, 1e-5 added to it, and the standard deviation without it on the way back.

use super::foreign::{Foreign, ForeignActivation};
use super::tensors::{ForeignSettings, Tensors, not_representable};
use super::{Notes, other_eps, transpose, write_json, write_tensors};
use crate::error::Result;
use crate::files::Tensor;
use crate::model::Params;
use crate::model::file::ModelMeta;
use crate::spec::Inference;
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
/// Version of the format: without one of at least 6 SAELens takes its reader of old models.
const VERSION: &str = "6.18.0";

/// Writes the folder; `firing_rates` (M), if known, into `sparsity.safetensors`.
pub(super) fn write(
    folder: &Path,
    params: &Params,
    meta: &ModelMeta,
    firing_rates: Option<&[f64]>,
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
        // Models with thresholds are refused before they get here.
        Inference::Relu | Inference::Threshold => config["architecture"] = json!("standard"),
    }
    write_json(&folder.join(CONFIG), &config)?;
    let w_enc = transpose(&params.w_enc, m, d);
    write_tensors(
        &folder.join(WEIGHTS),
        &[
            Tensor::f32("W_enc".into(), vec![d, m], &w_enc),
            Tensor::f32("W_dec".into(), vec![m, d], params.decoder()),
            Tensor::f32("b_enc".into(), vec![m], &params.b_lat),
            Tensor::f32("b_dec".into(), vec![d], &params.b_pre),
        ],
    )?;
    if let Some(rates) = firing_rates {
        let logs: Vec<f32> = rates.iter().map(|rate| (rate + RATE_EPS).log10() as f32).collect();
        write_tensors(&folder.join(SPARSITY), &[Tensor::f32("sparsity".into(), vec![m], &logs)])?;
    }
    let load = "from sae_lens import SAE\nsae = SAE.load_from_disk(DIR)\ncodes = sae.encode(x); recon = sae.decode(codes)";
    Ok(Notes { load: load.into(), warning: other_eps("SAELens", meta) })
}

/// Settings that change no code: sizes and types that the tensors have, and where the activations came from. Old files have
/// some of them beside the others, new ones in `metadata`.
const HARMLESS: &str = "context_size d_in d_sae dataset_path dataset_trust_remote_code device dtype exclude_special_tokens \
    hook_head_index hook_layer hook_name hook_point hook_point_head_index hook_point_layer metadata model_class_name \
    model_from_pretrained_kwargs model_name neuronpedia_id prepend_bos release sae_lens_training_version sae_lens_version \
    seqpos_slice training_tokens";
/// Settings of training alone. Versions before 3 wrote all of the runner's (`LanguageModelSAERunnerConfig` of 1.3 to 5.11
/// and what came before it), `TrainingSAE` of version 6 still writes those of its own.
const TRAINING: &str = "act_store_device adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient b_dec_init_method \
    cached_activations_path checkpoint_path compile_llm compile_sae dead_feature_estimation_method dead_feature_threshold \
    dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init \
    eval_batch_size_prompts eval_every_n_wandb_logs expansion_factor feature_reinit_scale feature_sampling_method \
    feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path hook_eval hook_point_eval \
    init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold l1_coefficient \
    l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb lp_norm lr \
    lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps model_kwargs mse_loss_normalization n_batches_in_buffer \
    n_checkpoints n_eval_batches n_restart_cycles noise_scale normalize_sae_decoder resample_batches resume run_name \
    sae_compilation_mode scale_sparsity_penalty_by_decoder_norm seed store_batch_size store_batch_size_prompts streaming \
    tokens_per_buffer total_training_tokens train_batch_size train_batch_size_tokens use_cached_activations use_ghost_grads \
    use_sparse_activations verbose wandb_entity wandb_id wandb_log_frequency wandb_project";
/// Settings that [`read`] takes into account.
const USED: [&str; 10] = [
    "activation_fn",
    "activation_fn_kwargs",
    "activation_fn_str",
    "apply_b_dec_to_input",
    "architecture",
    "finetuning_scaling_factor",
    "k",
    "normalize_activations",
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
        Some("standard") => {
            return refuse("architecture `standard` with the activation function `topk`".into());
        }
        other => {
            let name = other.unwrap_or_default();
            return refuse(format!("architecture `{name}`; only topk and standard can be read"));
        }
    };
    if let Some(arguments) = config.inner("activation_fn_kwargs")? {
        arguments.nothing_else(&[], ignored)?;
    }
    Ok(activation)
}

/// Refuses what is done to activations before the encoder, and is not ours; true where each row is normalised.
fn normalized(config: &ForeignSettings, folder: &Path, path: &Path) -> Result<bool> {
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
    if let Ok(Some(flag)) = config.flag("normalize_activations") {
        return if flag {
            refuse("normalize_activations `true` (expected_average_only_in)".into())
        } else {
            Ok(false)
        };
    }
    match config.text("normalize_activations")?.as_deref() {
        None | Some("none") => Ok(false),
        Some("layer_norm") => Ok(true),
        Some(other) => refuse(format!("normalize_activations `{other}`")),
    }
}

pub(super) fn read(folder: &Path, ignored: &[String]) -> Result<Foreign> {
    let path = folder.join(CONFIG);
    let config = ForeignSettings::read(&path)?;
    let activation = activation(&config, &path, ignored)?;
    let normalize = normalized(&config, folder, &path)?;
    let harmless: Vec<&str> =
        [HARMLESS, TRAINING].iter().flat_map(|names| names.split_whitespace()).collect();
    config.nothing_else(&[&harmless[..], &USED].concat(), ignored)?;
    let mut tensors = Tensors::read(&folder.join(WEIGHTS))?;
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
    if config.flag("rescale_acts_by_decoder_norm")?.unwrap_or(false) {
        if activation == ForeignActivation::Relu {
            return Err(not_representable(&path, "rescale_acts_by_decoder_norm in a model that is no top k"));
        }
        model.fold_decoder_norms();
    }
    tensors.nothing_left(&[], ignored)?;
    Ok(model)
}
