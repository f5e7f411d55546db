//! Warps of a block, their lanes apart and together, and barriers.

mod execute;

use super::memory::{Global, Shared, Who};
use super::{Address, Grid, Instruction, Kernel, LANES, Lanes, Op, Operand, lanes};
use rand::RngExt;
use rand::rngs::SmallRng;

/// The most instructions of a warp between two barriers: more is reported as a loop without an end.
const ENDLESS: u64 = 1 << 31;

/// Lanes at one instruction.
type Group = (u32, u32);

pub struct Warp {
    number: usize,
    registers: Vec<Lanes>,
    predicates: Vec<u32>,
    /// Lanes that can go on, the lowest instruction last.
    groups: Vec<Group>,
    /// Lanes that wait for others of their warp.
    waiting: Vec<Group>,
    /// Lanes that wait for the block.
    at_barrier: Option<Group>,
    live: u32,
    epoch: u32,
    steps: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    Waits,
    Ended,
}

impl Warp {
    pub fn new(kernel: &Kernel, number: usize) -> Self {
        Self {
            number,
            registers: vec![[0; LANES]; kernel.registers],
            predicates: vec![0; kernel.predicates],
            groups: vec![],
            waiting: vec![],
            at_barrier: None,
            live: 0,
            epoch: 0,
            steps: 0,
        }
    }

    fn begin(&mut self) {
        self.groups = vec![(0, u32::MAX)];
        self.waiting.clear();
        (self.at_barrier, self.live, self.epoch, self.steps) = (None, u32::MAX, 0, 0);
    }

    fn state(&self) -> State {
        match (self.live, self.groups.is_empty()) {
            (0, _) => State::Ended,
            (_, true) => State::Waits,
            _ => State::Runs,
        }
    }

    fn who(&self, lane: usize) -> Who {
        Who { block: 0, epoch: self.epoch, thread: (self.number * LANES + lane) as u16 }
    }

    fn join(&mut self, (pc, mask): Group) {
        if mask == 0 {
            return;
        }
        match self.groups.iter_mut().find(|g| g.0 == pc) {
            Some(group) => group.1 |= mask,
            None => {
                let at = self.groups.partition_point(|g| g.0 > pc);
                self.groups.insert(at, (pc, mask));
            }
        }
    }

    fn get<'a>(&'a self, kernel: &'a Kernel, from: Operand) -> &'a Lanes {
        match from {
            Operand::Register(r) => &self.registers[r as usize],
            Operand::Constant(c) => &kernel.constants[c as usize],
        }
    }

    fn set(&mut self, to: u32, mask: u32, values: &Lanes) {
        let register = &mut self.registers[to as usize];
        if mask == u32::MAX {
            *register = *values;
        } else {
            lanes(mask).for_each(|lane| register[lane] = values[lane]);
        }
    }

    fn set_predicate(&mut self, to: u32, mask: u32, bits: u32) {
        let predicate = &mut self.predicates[to as usize];
        *predicate = (*predicate & !mask) | (bits & mask);
    }

    fn addresses(&self, kernel: &Kernel, at: Address) -> Lanes {
        self.get(kernel, at.base).map(|base| base.wrapping_add(at.offset as u64))
    }
}

pub struct Block<'a, 'b> {
    pub kernel: &'a Kernel,
    pub grid: &'a Grid<'a>,
    pub place: (u32, u32),
    pub warps: &'a mut [Warp],
    pub shared: &'a mut Shared,
    pub global: &'a mut Global<'b>,
    pub random: &'a mut SmallRng,
}

impl Block<'_, '_> {
    pub fn run(&mut self) -> Result<(), String> {
        self.warps.iter_mut().for_each(Warp::begin);
        loop {
            let ready: Vec<usize> =
                (0..self.warps.len()).filter(|&w| self.warps[w].state() == State::Runs).collect();
            if ready.is_empty() {
                if self.warps.iter().all(|w| w.state() == State::Ended) {
                    return Ok(());
                }
                self.release()?;
                continue;
            }
            let chosen = ready[self.random.random_range(..ready.len())];
            // Mostly short turns, so that warps meet in many ways.
            let most = 1u64 << self.random.random_range(..12u32);
            let turn = 1 + self.random.random_range(..most);
            self.turn(chosen, turn)?;
        }
    }

    /// Lets all threads go on that wait at the barrier, which must be the same one, and all threads of the block.
    fn release(&mut self) -> Result<(), String> {
        let mut barriers =
            self.warps.iter().map(|w| w.at_barrier.filter(|b| b.1 == w.live && w.live == u32::MAX));
        let first = barriers.next().flatten();
        let together =
            first.is_some() && barriers.all(|b| b.is_some_and(|b| first.is_some_and(|f| f.0 == b.0)));
        let Some((pc, _)) = first.filter(|_| together) else {
            let one = self.warps.iter().find_map(|w| w.at_barrier.or(w.waiting.first().copied()));
            let place = one.map_or(String::new(), |(pc, _)| self.at(&self.kernel.code[pc as usize]));
            return Err(format!("threads wait for others that never come{place}"));
        };
        let any = match self.kernel.code[pc as usize].op {
            Op::Barrier { any } => any,
            _ => None,
        };
        if let Some((to, from)) = any {
            let value = self.warps.iter().any(|w| w.predicates[from as usize] != 0);
            for warp in self.warps.iter_mut() {
                warp.predicates[to as usize] = if value { u32::MAX } else { 0 };
            }
        }
        for warp in self.warps.iter_mut() {
            (warp.at_barrier, warp.steps) = (None, 0);
            warp.epoch += 1;
            warp.join((pc + 1, u32::MAX));
        }
        Ok(())
    }

    fn at(&self, instruction: &Instruction) -> String {
        match self.kernel.lines[instruction.line as usize].as_str() {
            "" => String::new(),
            line => format!(" at {line}"),
        }
    }

    /// Up to `turn` instructions of warp `w`.
    fn turn(&mut self, w: usize, turn: u64) -> Result<(), String> {
        let kernel = self.kernel;
        let mut left = turn;
        while let Some((mut pc, mut mask)) = self.warps[w].groups.pop() {
            let next = self.warps[w].groups.last().map_or(u32::MAX, |g| g.0);
            loop {
                if left == 0 || pc >= next {
                    self.warps[w].join((pc, mask));
                    break;
                }
                left -= 1;
                let instruction = kernel.code.get(pc as usize).ok_or("a kernel without an end")?;
                let active = match instruction.guard {
                    Some((p, true)) => mask & self.warps[w].predicates[p as usize],
                    Some((p, false)) => mask & !self.warps[w].predicates[p as usize],
                    None => mask,
                };
                self.global.counts.instructions += 1;
                self.warps[w].steps += 1;
                if self.warps[w].steps > ENDLESS {
                    return Err(format!("a loop without an end{}", self.at(instruction)));
                }
                match instruction.op {
                    Op::Branch { to } if active == mask => pc = to,
                    Op::Branch { to } if active != 0 => {
                        self.warps[w].join((to, active));
                        self.warps[w].join((pc + 1, mask & !active));
                        break;
                    }
                    Op::Return => {
                        self.warps[w].live &= !active;
                        mask &= !active;
                        pc += 1;
                        if mask == 0 {
                            break;
                        }
                    }
                    Op::Shuffle { members, .. } | Op::Vote { members, .. } if active != 0 => {
                        self.warps[w].join((pc + 1, mask & !active));
                        self.meet(w, (pc, active), members)
                            .map_err(|told| format!("{told}{}", self.at(instruction)))?;
                        break;
                    }
                    Op::Barrier { .. } if active != 0 => {
                        let warp = &mut self.warps[w];
                        warp.join((pc + 1, mask & !active));
                        match &mut warp.at_barrier {
                            None => warp.at_barrier = Some((pc, active)),
                            Some(group) if group.0 == pc => group.1 |= active,
                            Some(_) => {
                                return Err(format!(
                                    "lanes of a warp at two barriers{}",
                                    self.at(instruction)
                                ));
                            }
                        }
                        break;
                    }
                    _ => {
                        if active != 0 {
                            self.execute(w, &instruction.op, active)
                                .map_err(|told| format!("{told}{}", self.at(instruction)))?;
                        }
                        pc += 1;
                    }
                }
            }
            if left == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Lanes that exchange something wait until all members have come, and then go on together.
    fn meet(&mut self, w: usize, (pc, active): Group, members: Operand) -> Result<(), String> {
        let kernel = self.kernel;
        let warp = &mut self.warps[w];
        let wanted = warp.get(kernel, members)[active.trailing_zeros() as usize] as u32;
        let told = lanes(active).all(|lane| warp.get(kernel, members)[lane] as u32 == wanted);
        if !told || active & !wanted != 0 || wanted & !warp.live != 0 {
            return Err(format!("lanes {active:#x} of {:#x} name {wanted:#x} as those that come", warp.live));
        }
        let mut here = active;
        if let Some(at) = warp.waiting.iter().position(|g| g.0 == pc) {
            here |= warp.waiting.remove(at).1;
        }
        if here != wanted {
            warp.waiting.push((pc, here));
            return Ok(());
        }
        self.execute(w, &kernel.code[pc as usize].op, here)?;
        self.warps[w].join((pc + 1, here));
        Ok(())
    }
}
