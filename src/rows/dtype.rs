//! The number types that embeddings are stored in.

use std::fmt;

/// The type of a stored value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Dtype {
    /// IEEE half precision.
    #[serde(rename = "float16")]
    F16,
    /// The upper half of a float32.
    #[serde(rename = "bfloat16")]
    Bf16,
    /// IEEE single precision.
    #[serde(rename = "float32")]
    F32,
    /// IEEE double precision.
    #[serde(rename = "float64")]
    F64,
}

impl Dtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The narrowest type that holds both exactly.
    pub(crate) fn widest(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::F64, _) | (_, Self::F64) => Self::F64,
            _ => Self::F32,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        })
    }
}
