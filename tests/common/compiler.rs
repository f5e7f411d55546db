//! Whether NVIDIA's compiler is there. A machine without it says so and passes; `SAE_REQUIRE_NVRTC=1` makes that a
//! failure, as CI does.

use topk_sae::backend::cuda::libraries::{self, Need};

/// Whether NVRTC is there; says so where it is not.
pub fn nvrtc() -> bool {
    match libraries::nvrtc(Need::default()) {
        Ok(_) => true,
        Err(reason) => {
            let required = std::env::var("SAE_REQUIRE_NVRTC").is_ok_and(|v| v == "1");
            assert!(!required, "SAE_REQUIRE_NVRTC=1: {reason}");
            eprintln!("skipped: {reason}");
            false
        }
    }
}
