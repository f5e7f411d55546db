//! What is launched, as plain data.

/// One kernel argument, passed by value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// A pointer; 0 is the null pointer.
    Pointer(u64),
    /// `unsigned int`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

/// Blocks, threads and dynamic shared memory of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x and y.
    pub grid: (u32, u32),
    /// Threads per block, in x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// Type of the values of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A row-major matrix: element (i, j) is value `i * stride + j` from `address`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// First element.
    pub address: u64,
    /// Type of the values.
    pub element: Element,
    /// Rows as stored.
    pub rows: usize,
    /// Columns as stored.
    pub cols: usize,
    /// Values between the starts of two rows.
    pub stride: usize,
}

/// `out = a b`, or `out += a b`; a and b may be taken transposed.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Left operand.
    pub a: Matrix,
    /// Take the left operand transposed.
    pub a_transposed: bool,
    /// Right operand.
    pub b: Matrix,
    /// Take the right operand transposed.
    pub b_transposed: bool,
    /// Result.
    pub out: Matrix,
    /// Add to what is there.
    pub add: bool,
}
