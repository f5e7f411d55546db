//! The CUDA engine.
//!
//! | file | holds |
//! | --- | --- |
//! | [`device`] | what is asked of a device: memory, copies, launches, dense products, recorded work |
//! | [`libraries`] | the driver, NVRTC and cuBLAS: found, opened, and told where they are missing |
//! | [`compile`] | the kernels by NVRTC, kept on disk; what each of them takes of the card |
//! | [`card`] | a device that is a CUDA card |
//! | [`gemm`] | a row-major product as a call of cuBLAS |
//! | [`fault`] | errors of the driver in one line |

pub mod card;
pub mod compile;
pub mod device;
pub mod fault;
pub mod gemm;
pub mod libraries;
mod pinned;

/// The kernels' sources, carried by the binary.
pub mod sources {
    include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));
}
