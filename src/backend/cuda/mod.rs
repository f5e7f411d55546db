//! The CUDA engine.
//!
//! | file | holds |
//! | --- | --- |
//! | [`device`] | what is asked of a device: memory, copies, launches, dense products, recorded work |

pub mod device;

/// The kernels' sources, carried by the binary.
pub mod sources {
    include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));
}
