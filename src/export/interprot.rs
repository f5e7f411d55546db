//! InterProt's protein autoencoders: one safetensors file, the state of `SparseAutoencoder`
//! (`interprot/sae_model.py` of etowahadams/interprot).
//!
//! `w_enc` (D, M), `w_dec` (M, D), `b_enc` (M), `b_pre` (D), `stats_last_nonzero` (M) int64. Its LayerNorm is our
//! normalisation and always on; k is an argument of the class and not in the file.

use super::foreign::{Foreign, ForeignActivation};
use super::tensors::Tensors;
use super::{Notes, other_eps, top, transpose, write_tensors};
use crate::error::Result;
use crate::files::Tensor;
use crate::model::Params;
use crate::model::file::ModelMeta;
use safetensors::Dtype;
use std::path::Path;

pub(super) const WEIGHTS: &str = "interprot.safetensors";

pub(super) fn write(folder: &Path, params: &Params, meta: &ModelMeta) -> Result<Notes> {
    let (d, m, k) = (params.d_in, params.n_latents, top(meta));
    let w_enc = transpose(&params.w_enc, m, d);
    let last_nonzero = vec![0u8; 8 * m];
    write_tensors(
        &folder.join(WEIGHTS),
        &[
            Tensor::f32("w_enc".into(), vec![d, m], &w_enc),
            Tensor::f32("w_dec".into(), vec![m, d], params.decoder()),
            Tensor::f32("b_enc".into(), vec![m], &params.b_lat),
            Tensor::f32("b_pre".into(), vec![d], &params.b_pre),
            Tensor {
                name: "stats_last_nonzero".into(),
                dtype: Dtype::I64,
                shape: vec![m],
                bytes: &last_nonzero,
            },
        ],
    )?;
    let load = format!(
        "from interprot.sae_model import SparseAutoencoder\nfrom safetensors.torch import load_file\n\
         sae = SparseAutoencoder({d}, {m}, k={k})\nsae.load_state_dict(load_file(\"DIR/{WEIGHTS}\"))\n\
         codes = sae.get_acts(x); recon = sae.forward_val(x)"
    );
    let warning = (!meta.architecture.forward.normalize).then(|| {
        "InterProt always normalises rows and this model was trained without: its codes and reconstructions differ; \
         use encode and decode of the tensors by hand, or another format"
            .to_owned()
    });
    Ok(Notes { load, warning: warning.or_else(|| other_eps("InterProt", meta)) })
}

pub(super) fn read(path: &Path, ignored: &[String]) -> Result<Foreign> {
    let mut tensors = Tensors::read(path)?;
    let (d, m, w_enc) = tensors.matrix("w_enc")?;
    let b_pre = tensors.take("b_pre", &[d])?;
    let model = Foreign {
        d_in: d,
        n_latents: m,
        w_enc: transpose(&w_enc, d, m),
        w_dec: tensors.take("w_dec", &[m, d])?,
        b_enc: tensors.take("b_enc", &[m])?,
        b_in: b_pre.clone(),
        b_dec: b_pre,
        activation: ForeignActivation::Topk(None),
        threshold: None,
        prefixes: vec![],
        normalize: Some(true),
    };
    tensors.nothing_left(&["stats_last_nonzero"], ignored)?;
    Ok(model)
}
