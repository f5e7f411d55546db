//! Errors of the driver and of cuBLAS in one line: what was being done, their words, what to do.

use crate::error::Error;
use cudarc::cublas::result::CublasError;
use cudarc::cublas::sys::cublasStatus_t as Status;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

const GO_ON: &str = "run the command again; training continues with `sae train --resume RUN`";
const LESS: &str = "lower --batch-size or --latents, or use --precision bf16; \
                    `nvidia-smi` shows what other programs hold";

/// The driver's error while `doing` something. Call only where the driver is open.
pub fn driver(doing: &str, error: DriverError) -> Error {
    let words = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    Error::Failed(driver_text(doing, error.0, words.as_deref()))
}

fn driver_text(doing: &str, code: CUresult, words: Option<&str>) -> String {
    let words = words.map_or(String::new(), |w| format!(", {}", one_line(w)));
    format!("{doing}: the GPU's driver answers {code:?} ({}{words}); {}", code as u32, advice(code))
}

/// What to do after an error of the driver.
fn advice(code: CUresult) -> String {
    use CUresult as E;
    match code {
        E::CUDA_ERROR_OUT_OF_MEMORY => LESS.to_owned(),
        E::CUDA_ERROR_NO_BINARY_FOR_GPU
        | E::CUDA_ERROR_INVALID_IMAGE
        | E::CUDA_ERROR_INVALID_PTX
        | E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | E::CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER
        | E::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | E::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        | E::CUDA_ERROR_STUB_LIBRARY => {
            "the driver is too old, or of another version than its parts: update it (`sae devices` shows the versions)"
                .to_owned()
        }
        E::CUDA_ERROR_ECC_UNCORRECTABLE
        | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | E::CUDA_ERROR_CONTAINED
        | E::CUDA_ERROR_DEVICE_UNAVAILABLE
        | E::CUDA_ERROR_NO_DEVICE
        | E::CUDA_ERROR_INVALID_DEVICE
        | E::CUDA_ERROR_DEINITIALIZED
        | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | E::CUDA_ERROR_HARDWARE_STACK_ERROR
        | E::CUDA_ERROR_LAUNCH_FAILED
        | E::CUDA_ERROR_LAUNCH_TIMEOUT
        | E::CUDA_ERROR_SYSTEM_NOT_READY
        | E::CUDA_ERROR_EXTERNAL_DEVICE
        | E::CUDA_ERROR_MPS_RPC_FAILURE
        | E::CUDA_ERROR_MPS_CLIENT_TERMINATED
        | E::CUDA_ERROR_TIMEOUT
        | E::CUDA_ERROR_UNKNOWN => {
            format!("the GPU failed or was taken away (`nvidia-smi` and `dmesg` may say more); {GO_ON}")
        }
        _ => format!("please report this; {GO_ON}"),
    }
}

/// cuBLAS's error while `doing` something.
pub fn cublas(doing: &str, error: CublasError) -> Error {
    let advice = match error.0 {
        Status::CUBLAS_STATUS_ALLOC_FAILED => LESS.to_owned(),
        Status::CUBLAS_STATUS_NOT_INITIALIZED | Status::CUBLAS_STATUS_ARCH_MISMATCH => {
            "cuBLAS and the driver or the card do not go together, or no GPU memory is left: `sae devices` shows \
             the versions, `nvidia-smi` the memory"
                .to_owned()
        }
        Status::CUBLAS_STATUS_EXECUTION_FAILED | Status::CUBLAS_STATUS_MAPPING_ERROR => {
            format!("the GPU failed or was taken away (`nvidia-smi` and `dmesg` may say more); {GO_ON}")
        }
        _ => format!("please report this; {GO_ON}"),
    };
    Error::Failed(format!("{doing}: cuBLAS answers {:?}; {advice}", error.0))
}

/// The error for memory that is not there.
pub fn no_memory(what: &str, bytes: u64, free: Option<(u64, u64)>) -> Error {
    use crate::text::bytes as size;
    let left = free.map_or("the driver does not say how much is free".to_owned(), |(free, total)| {
        format!("{} of {} are free", size(free), size(total))
    });
    Error::Failed(format!("not enough GPU memory for {what}: {} asked, and {left}; {LESS}", size(bytes)))
}

/// Text of several lines as one.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_lost_leaves_a_run_that_can_go_on() {
        for code in [
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
            CUresult::CUDA_ERROR_UNKNOWN,
        ] {
            let text = driver_text("waiting for the GPU", code, Some("words of\nthe driver"));
            assert!(
                text.starts_with("waiting for the GPU: ") && text.contains(&format!("{code:?}")),
                "{text}"
            );
            assert!(text.contains("taken away") && text.contains("sae train --resume RUN"), "{text}");
            assert!(text.contains("words of the driver") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn an_old_driver_a_full_memory_and_our_own_mistakes_are_told_apart() {
        let text = |code| driver_text("x", code, None);
        assert!(text(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU).contains("update it"));
        assert!(text(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION).contains("too old"));
        assert!(text(CUresult::CUDA_ERROR_OUT_OF_MEMORY).contains("--batch-size"));
        let mistake = text(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert!(mistake.contains("please report") && mistake.contains("700"), "{mistake}");
        let lost = cublas("x", CublasError(Status::CUBLAS_STATUS_EXECUTION_FAILED)).to_string();
        assert!(lost.contains("CUBLAS_STATUS_EXECUTION_FAILED") && lost.contains("--resume"), "{lost}");
    }

    #[test]
    fn memory_that_is_not_there_is_told_with_all_sizes_and_the_flags_that_help() {
        let text = no_memory("the scores", 4 << 30, Some((1 << 30, 24 << 30))).to_string();
        for part in ["the scores", "4.00 GiB", "1.00 GiB", "24.0 GiB", "--batch-size", "--latents", "bf16"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}
