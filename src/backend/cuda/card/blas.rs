//! cuBLAS on the card's stream.

use super::{device_wide, take};
use crate::backend::cuda::device::Memory;
use crate::backend::cuda::fault;
use crate::backend::cuda::gemm::GemmCall;
use crate::backend::cuda::libraries::{self, Cublas, Need, Version};
use crate::error::{Error, Result};
use cudarc::cublas::sys::{cublasGemmAlgo_t as Algorithm, cublasHandle_t, cublasMath_t as MathMode};
use cudarc::driver::CudaStream;
use std::ffi::c_void;
use std::sync::Arc;

const STARTING: &str = "starting cuBLAS";

/// A handle of cuBLAS, bound to one stream, with a workspace of its own.
///
/// Not cudarc's `CudaBlas`: that one panics when it is dropped after the card failed.
pub(super) struct Blas {
    handle: Handle,
    // After the handle: it is in use until then.
    _workspace: Memory,
}

struct Handle {
    cublas: &'static Cublas,
    handle: cublasHandle_t,
}

// SAFETY: a handle belongs to a context, not to a thread: cuBLAS allows any thread to use it, one at a time, which
// `&mut Card` sees to, with the context current, which `Card` makes so before every call.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        let _alone = device_wide();
        // SAFETY: created by `Blas::new` and destroyed here alone. An error leaves nothing to do.
        let _ = unsafe { (self.cublas.cublasDestroy_v2)(self.handle) };
    }
}

/// Bytes of workspace that cuBLAS asks for: 32 MiB from compute capability 9.0 on, else 8 MiB.
fn workspace(capability: Version) -> usize {
    (if capability >= (9, 0) { 32 } else { 8 }) << 20
}

impl Blas {
    /// The context of `stream` must be current.
    pub(super) fn new(stream: &Arc<CudaStream>, capability: Version) -> Result<Self> {
        let failed = |e| fault::cublas(STARTING, e);
        let bytes = workspace(capability);
        let memory = take([stream], bytes, "the workspace of cuBLAS")?;
        let cublas = &libraries::cublas(Need::default()).map_err(Error::Failed)?.functions;
        let mut handle = std::ptr::null_mut();
        let created = {
            let _alone = device_wide();
            // SAFETY: cuBLAS writes one handle, of the context that is current.
            unsafe { (cublas.cublasCreate_v2)(&mut handle) }
        };
        created.result().map_err(failed)?;
        let handle = Handle { cublas, handle };
        // SAFETY: the handle is new and the stream lives: `Card` holds both.
        unsafe { (cublas.cublasSetStream_v2)(handle.handle, stream.cu_stream().cast()) }
            .result()
            .map_err(failed)?;
        // Setting the stream takes the workspace away, so this comes after it. A workspace of its own makes sums
        // the same in every run, and lets products be recorded.
        // SAFETY: the block has `bytes` bytes, is aligned to 256, and is freed after the handle.
        unsafe { (cublas.cublasSetWorkspace_v2)(handle.handle, memory.address() as *mut c_void, bytes) }
            .result()
            .map_err(failed)?;
        // The default mode, in which `CUBLAS_COMPUTE_32F` does not round float32 to TF32; and sums that are split
        // are not added in bfloat16.
        let mode = MathMode::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle lives.
        unsafe { (cublas.cublasSetMathMode)(handle.handle, mode) }.result().map_err(failed)?;
        Ok(Self { handle, _workspace: memory })
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The matrices of `call` must lie in live memory of the stream's context, which is current, and C must not
    /// overlap the others.
    pub(super) unsafe fn gemm(&self, call: &GemmCall) -> Result<()> {
        if call.m == 0 || call.n == 0 {
            return Ok(());
        }
        let one = 1.0f32;
        // SAFETY: the caller vouches for the matrices; alpha and beta are float32, as the arithmetic is, and are
        // read during the call (the handle's pointer mode is the host's).
        let queued = unsafe {
            (self.handle.cublas.cublasGemmEx)(
                self.handle.handle,
                call.turn_a,
                call.turn_b,
                call.m,
                call.n,
                call.k,
                (&raw const one).cast(),
                call.a as *const c_void,
                call.operands,
                call.lda,
                call.b as *const c_void,
                call.operands,
                call.ldb,
                (&raw const call.beta).cast(),
                call.c as *mut c_void,
                call.result,
                call.ldc,
                call.compute,
                Algorithm::CUBLAS_GEMM_DFALT,
            )
        };
        let size = (call.n, call.m, call.k);
        queued
            .result()
            .map_err(|e| fault::cublas(&format!("a dense product of {size:?} (rows, columns, sum)"), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_what_cublas_asks_for_on_the_card() {
        assert_eq!(workspace((8, 9)), 8 << 20);
        assert_eq!(workspace((9, 0)), 32 << 20);
        assert_eq!(workspace((12, 0)), 32 << 20);
    }
}
