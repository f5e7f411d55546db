//! The CUDA engine, in reading order.
//!
//! | file | holds |
//! | --- | --- |
//! | [`device`] | what is asked of a device: memory, copies, launches, dense products, recorded work |
//! | [`params`] | structs that host and kernels share |
//! | [`buffer`] | device memory with a type |
//! | [`tensors`] | the training state on the device |
//! | [`work`] | sizes of a run, and the buffers of a batch |
//! | [`launch`] | one launcher a kernel |
//! | [`engine`] | the backend: data, evaluations, statistics |
//! | `step` | what is queued of a step |
//! | `look` | a look inside a pass |
//! | [`timed`] | a device that times each launch of another |

pub mod buffer;
pub mod device;
pub mod engine;
pub mod launch;
mod look;
pub mod params;
mod step;
pub mod tensors;
pub mod timed;
pub mod work;

use super::{Backend, ModelSpec};
use crate::config::Precision;
use crate::data::Embeddings;
use crate::error::{Error, Result};
use crate::model::TrainState;
use std::sync::Arc;

/// The kernels' sources, carried by the binary.
pub mod sources {
    include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));
}

/// Why no CUDA device can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// True where an NVIDIA driver is there, so that a person would expect the GPU to be used.
    pub driver: bool,
    /// What is missing, in one line without a full stop.
    pub reason: String,
}

// TO BE REPLACED by the engine, with these signatures: `available`, `open`, `memory`.
const NO_ENGINE: &str = "this build has no CUDA engine yet";

/// Number of devices that can be used (at least 1).
///
/// # Errors
/// Why there is none.
pub fn available() -> std::result::Result<usize, Unavailable> {
    Err(Unavailable { driver: false, reason: NO_ENGINE.into() })
}

/// A backend on device `ordinal` over `data` that goes on from `state`.
///
/// # Errors
/// What is missing on this machine, or what the device refuses.
pub fn open(
    ordinal: usize,
    _data: Arc<Embeddings>,
    _spec: ModelSpec,
    _precision: Precision,
    _state: TrainState,
) -> Result<Box<dyn Backend>> {
    Err(Error::Failed(format!("cuda:{ordinal}: {NO_ENGINE}")))
}

/// Bytes of device memory that training takes beside the data: D inputs, M latents, batches of `n_rows`, warm-up
/// included.
pub fn memory(
    spec: &ModelSpec,
    d_in: usize,
    n_latents: usize,
    tied: bool,
    n_rows: usize,
    precision: Precision,
) -> u64 {
    // Refused sizes are told when the device is opened.
    let Ok(sizes) = work::Sizes::new(spec, d_in, n_latents, tied, precision, crate::data::Dtype::F32) else {
        return 0;
    };
    let state = tensors::bytes(d_in, n_latents, tied, spec.ema.is_some(), sizes.element);
    state + engine::shared_bytes(n_latents) + work::bytes(&sizes, spec, n_rows)
}
