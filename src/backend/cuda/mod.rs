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
//! | [`engine`] | what is queued for a step and an evaluation |
//! | `look` | a look inside a pass |

pub mod buffer;
pub mod device;
pub mod engine;
pub mod launch;
mod look;
pub mod params;
pub mod tensors;
pub mod work;

/// The kernels' sources, carried by the binary.
pub mod sources {
    include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));
}
