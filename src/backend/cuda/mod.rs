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
//! | `all_rows` | all rows on the device, shared by the backends of a process |
//! | `feed` | batches of rows on their way to the device |
//! | `step` | what is queued of a step |
//! | `look` | a look inside a pass |
//! | `evaluate` | the inference code: its quality, its entries |
//! | [`libraries`] | the driver, NVRTC and cuBLAS: found and opened, or named in an error where they are missing |
//! | [`compile`] | the kernels by NVRTC, kept on disk; what each of them takes of the card |
//! | [`card`] | a device that is a CUDA card |
//! | `pinned`, `lane` | messages to a card: small ones in turn, rows ahead of the work |
//! | [`gemm`] | a row-major product as a call of cuBLAS |
//! | [`fault`] | errors of the driver in one line |
//! | [`ranks`] | latents shared out over several devices |
//! | [`nccl`] | ranks that are processes with a card each |
//! | [`timed`] | a device that times each launch of another |

mod all_rows;
pub mod buffer;
pub mod card;
pub mod compile;
pub mod device;
pub mod engine;
mod evaluate;
pub mod fault;
mod feed;
pub mod gemm;
mod lane;
pub mod launch;
pub mod libraries;
mod look;
pub mod nccl;
pub mod params;
mod pinned;
pub mod places;
pub mod ranks;
mod step;
pub mod tensors;
pub mod timed;
pub mod work;

use super::Backend;
use crate::error::Result;
use crate::model::TrainState;
use crate::rows::RowSource;
use crate::spec::{ModelSpec, Precision, Training};
use device::Device;
use gemm::Math;
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

/// Number of devices that can be used (at least 1).
///
/// # Errors
/// Why there is none.
pub fn available() -> std::result::Result<usize, Unavailable> {
    libraries::available().map_err(|reason| Unavailable { driver: libraries::driver_is_there(), reason })
}

/// How dense products compute in a precision.
pub fn math(precision: Precision) -> Math {
    match precision {
        Precision::F32 => Math::F32,
        Precision::Tf32 => Math::Tf32,
        Precision::Bf16 => Math::Bf16,
    }
}

/// Bytes of memory that device `ordinal` has; `None` where it does not say.
pub fn memory_of_card(ordinal: usize) -> Option<u64> {
    Some(libraries::driver().ok()?.cards.get(ordinal)?.memory)
}

/// A backend on device `ordinal` over `data` that goes on from `state`.
///
/// # Errors
/// What is missing on this machine, or what the device refuses.
pub fn open(
    ordinal: usize,
    data: Arc<dyn RowSource>,
    spec: ModelSpec,
    precision: Precision,
    state: TrainState,
) -> Result<Box<dyn Backend>> {
    let card = card::open(ordinal, math(precision))?;
    let name = format!("cuda:{ordinal} {}", card.facts()?.name);
    Ok(Box::new(engine::Engine::new(name, Box::new(card), data, spec, precision, &state)?))
}

/// Bytes of device memory that training takes beside the data, its `n_data` rows, warm-up included.
pub fn memory(t: &Training, n_data: usize) -> u64 {
    // Evaluations use the buffers of steps.
    let n_rows = t.schedule.batch_size.max(engine::LEAST_ROWS.min(n_data));
    memory_of(&t.model, t.d_in, t.n_latents, t.tied, n_rows, t.precision)
}

/// The same for D inputs, M latents and batches of `n_rows`.
pub fn memory_of(
    spec: &ModelSpec,
    d_in: usize,
    n_latents: usize,
    tied: bool,
    n_rows: usize,
    precision: Precision,
) -> u64 {
    // Refused sizes are reported when the device is opened.
    let Ok(sizes) = work::Sizes::new(spec, d_in, n_latents, tied, precision, crate::rows::Dtype::F32) else {
        return 0;
    };
    let state = tensors::bytes(
        d_in,
        n_latents,
        tied,
        spec.optimizer.ema.is_some(),
        spec.forward.has_threshold(),
        sizes.element,
    );
    state + engine::shared_bytes(n_latents) + work::bytes(&sizes, spec, n_rows)
}
