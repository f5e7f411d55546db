//! Runs what NVIDIA's compiler made of the kernels, in PTX, on the CPU: what a card is given, not what g++ reads in
//! the same source. An instruction is carried out for a whole warp; lanes that part run lowest address first until
//! they meet again.
//!
//! Looked at in every access: that it lies in live memory or in one shared variable, that it is aligned to its
//! width, that shared memory was written before, and that no other thread touches the same place without a barrier
//! between, nor another block at all. The approximate instructions are computed exactly, so that a card's last bits
//! may differ.
//!
//! Only the instructions that the kernels use are known; another one is reported by name.
//! Source: NVIDIA, Parallel Thread Execution ISA 9.0.

mod memory;
pub mod ops;
mod parse;
mod warp;

pub use memory::Counts;
pub use parse::{Kernels, parse};

use crate::Launch;
use memory::{Global, Shared};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use warp::{Block, Warp};

/// Lanes of a warp.
pub const LANES: usize = 32;

/// One register: the bits of every lane, of narrower types in the low bits, with zeros above.
pub type Lanes = [u64; LANES];

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Operand {
    Register(u32),
    Constant(u32),
}

/// Source of a `mov` from a special register.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Special {
    Thread,
    Threads,
    BlockX,
    BlockY,
    BlocksX,
    BlocksY,
    Zero,
    One,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Global,
    Shared,
}

/// Base and offset of an access.
#[derive(Debug, Clone, Copy)]
struct Address {
    base: Operand,
    offset: i64,
}

#[derive(Debug, Clone, Copy)]
enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy)]
enum Vote {
    Any,
    All,
    Ballot,
}

#[derive(Debug, Clone)]
enum Op {
    Compute {
        make: ops::Compute,
        to: u32,
        from: [Operand; 4],
    },
    Compare {
        make: ops::Compare,
        to: u32,
        a: Operand,
        b: Operand,
    },
    Logic {
        make: fn(u32, u32) -> u32,
        to: u32,
        a: u32,
        b: u32,
    },
    Select {
        to: u32,
        a: Operand,
        b: Operand,
        by: u32,
    },
    Special {
        to: u32,
        what: Special,
    },
    Parameter {
        to: u32,
        index: usize,
    },
    Unpack {
        to: Vec<u32>,
        from: Operand,
        bits: u32,
    },
    Pack {
        to: u32,
        from: Vec<Operand>,
        bits: u32,
    },
    Load {
        place: Place,
        bytes: usize,
        to: Vec<u32>,
        at: Address,
    },
    Store {
        place: Place,
        bytes: usize,
        from: Vec<Operand>,
        at: Address,
    },
    Atomic {
        place: Place,
        make: fn(u32, u32) -> u32,
        to: u32,
        at: Address,
        with: Operand,
    },
    Shuffle {
        mode: Shuffle,
        to: u32,
        valid: Option<u32>,
        from: [Operand; 3],
        members: Operand,
    },
    Vote {
        mode: Vote,
        to: u32,
        from: u32,
        members: Operand,
    },
    /// A barrier; with `Some((to, from))` the predicate `to` becomes true where it is in any thread's `from`.
    Barrier {
        any: Option<(u32, u32)>,
    },
    Branch {
        to: u32,
    },
    Return,
}

#[derive(Debug, Clone)]
struct Instruction {
    /// Predicate, and the value that it must have.
    guard: Option<(u32, bool)>,
    op: Op,
    /// Line of the source, as `file:line`, for messages.
    line: u32,
}

/// A shared variable of a kernel.
#[derive(Debug, Clone)]
struct Variable {
    name: String,
    offset: u32,
    bytes: u32,
}

/// A kernel of a program.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Bytes of each parameter.
    pub parameters: Vec<usize>,
    /// The most threads that its launch bounds allow.
    most: u32,
    code: Vec<Instruction>,
    registers: usize,
    predicates: usize,
    constants: Vec<Lanes>,
    variables: Vec<Variable>,
    /// Where dynamic shared memory begins.
    dynamic: u32,
    lines: Vec<String>,
}

/// What a launch runs on beside the kernel.
pub struct Grid<'a> {
    /// Blocks, threads and dynamic shared memory.
    pub launch: Launch,
    /// Blocks of a lower number in x are left out.
    pub first_block: u32,
    /// A value a parameter.
    pub arguments: &'a [u64],
    /// Starts and lengths of live memory, by address.
    pub live: &'a [(u64, usize)],
    /// Chooses the order of blocks and warps.
    pub seed: u64,
}

impl Kernel {
    /// Runs every block.
    ///
    /// # Errors
    /// What a card would refuse or leave undefined, with its place.
    ///
    /// # Safety
    /// All of `live` must be memory of this process that nothing else uses meanwhile.
    pub unsafe fn run(&self, grid: &Grid<'_>) -> Result<Counts, String> {
        let Launch { grid: (nx, ny), block, shared } = grid.launch;
        if block == 0 || block % LANES as u32 != 0 || block > self.most {
            return Err(format!("{}: {block} threads a block, where up to {} can be", self.name, self.most));
        }
        if self.parameters.len() != grid.arguments.len() {
            let (wants, got) = (self.parameters.len(), grid.arguments.len());
            return Err(format!("{} takes {wants} parameters, not {got}", self.name));
        }
        let mut random = SmallRng::seed_from_u64(grid.seed);
        let mut order: Vec<(u32, u32)> =
            (0..ny).flat_map(|y| (grid.first_block.min(nx)..nx).map(move |x| (x, y))).collect();
        order.shuffle(&mut random);
        // SAFETY: the caller's promise is handed on.
        let mut global = unsafe { Global::new(grid.live) };
        let warps = (block as usize) / LANES;
        let mut memory = Shared::new(&self.variables, self.dynamic, shared);
        let mut block_warps: Vec<Warp> = (0..warps).map(|w| Warp::new(self, w)).collect();
        for (x, y) in order {
            let before = global.counts.instructions;
            memory.clear();
            global.enter(y * nx + x);
            let mut block = Block {
                kernel: self,
                grid,
                place: (x, y),
                warps: &mut block_warps,
                shared: &mut memory,
                global: &mut global,
                random: &mut random,
            };
            block.run().map_err(|told| format!("{}, block ({x}, {y}): {told}", self.name))?;
            let counts = &mut global.counts;
            counts.blocks += 1;
            counts.longest = counts.longest.max(counts.instructions - before);
        }
        Ok(global.counts + memory.counts)
    }
}

/// Numbers of the set bits.
fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 == 1)
}
