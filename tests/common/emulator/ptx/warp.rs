//! Warps of a block, their lanes apart and together, and barriers.

use super::memory::{Global, Kind, Shared, Who};
use super::{
    Address, Grid, Instruction, Kernel, LANES, Lanes, Op, Operand, Place, Shuffle, Special, Vote, lanes,
};
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

/// The most instructions of a warp between two barriers: a loop without an end is told.
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

    fn execute(&mut self, w: usize, op: &Op, mask: u32) -> Result<(), String> {
        let kernel = self.kernel;
        let warp = &mut self.warps[w];
        let mut out = [0; LANES];
        match op {
            Op::Compute { make, to, from } => {
                make(&from.map(|f| warp.get(kernel, f)), &mut out);
                warp.set(*to, mask, &out);
            }
            Op::Compare { make, to, a, b } => {
                let bits = make(warp.get(kernel, *a), warp.get(kernel, *b));
                warp.set_predicate(*to, mask, bits);
            }
            Op::Logic { make, to, a, b } => {
                let bits = make(warp.predicates[*a as usize], warp.predicates[*b as usize]);
                warp.set_predicate(*to, mask, bits);
            }
            Op::Select { to, a, b, by } => {
                let (a, b, by) = (warp.get(kernel, *a), warp.get(kernel, *b), warp.predicates[*by as usize]);
                for lane in 0..LANES {
                    out[lane] = if by >> lane & 1 == 1 { a[lane] } else { b[lane] };
                }
                warp.set(*to, mask, &out);
            }
            Op::Special { to, what } => {
                let launch = self.grid.launch;
                for (lane, out) in out.iter_mut().enumerate() {
                    *out = match what {
                        Special::Thread => (warp.number * LANES + lane) as u64,
                        Special::Threads => launch.block.into(),
                        Special::BlockX => self.place.0.into(),
                        Special::BlockY => self.place.1.into(),
                        Special::BlocksX => launch.grid.0.into(),
                        Special::BlocksY => launch.grid.1.into(),
                        Special::Zero => 0,
                        Special::One => 1,
                    };
                }
                warp.set(*to, mask, &out);
            }
            Op::Parameter { to, index } => {
                let value = self.grid.arguments.get(*index).ok_or("there is no such parameter")?;
                warp.set(*to, mask, &[*value; LANES]);
            }
            Op::Unpack { to, from, bits } => {
                let from = *warp.get(kernel, *from);
                for (part, to) in to.iter().enumerate() {
                    let part = from.map(|v| v >> (part as u32 * bits) & ((1 << bits) - 1));
                    warp.set(*to, mask, &part);
                }
            }
            Op::Pack { to, from, bits } => {
                for (part, from) in from.iter().enumerate() {
                    let from = warp.get(kernel, *from);
                    (0..LANES).for_each(|lane| out[lane] |= from[lane] << (part as u32 * bits));
                }
                warp.set(*to, mask, &out);
            }
            Op::Shuffle { mode, to, valid, from: [value, b, c], .. } => {
                let [value, b, c] = [value, b, c].map(|f| warp.get(kernel, *f));
                let mut reached = 0;
                for lane in lanes(mask) {
                    let (from, valid) = source_lane(*mode, lane as i64, b[lane] as i64 & 31, c[lane]);
                    if mask >> from & 1 == 0 {
                        return Err(format!("lane {lane} takes a value of lane {from}, which is not there"));
                    }
                    out[lane] = value[from];
                    reached |= u32::from(valid) << lane;
                }
                warp.set(*to, mask, &out);
                if let Some(valid) = valid {
                    warp.set_predicate(*valid, mask, reached);
                }
            }
            Op::Vote { mode, to, from, .. } => {
                let votes = warp.predicates[*from as usize] & mask;
                match mode {
                    Vote::Ballot => warp.set(*to, mask, &[votes.into(); LANES]),
                    Vote::Any => warp.set_predicate(*to, mask, if votes != 0 { mask } else { 0 }),
                    Vote::All => warp.set_predicate(*to, mask, if votes == mask { mask } else { 0 }),
                }
            }
            Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } => return self.transfer(w, op, mask),
            Op::Barrier { .. } | Op::Branch { .. } | Op::Return => {
                return Err("not to be executed here".into());
            }
        }
        Ok(())
    }

    /// Checks and notes one lane's access of `bytes` bytes, into which it stores `from`.
    fn access(
        &mut self,
        w: usize,
        (place, bytes, kind): (Place, usize, Kind),
        lane: usize,
        at: u64,
        from: &[Lanes],
    ) -> Result<(), String> {
        match place {
            Place::Global => self.global.inside(at, bytes)?,
            Place::Shared => self.shared.inside(at, bytes)?,
        }
        let each = bytes / from.len().max(1);
        let is_there = |(i, v): (usize, &Lanes)| self.load(place, at + (i * each) as u64, each) == v[lane];
        let same = kind == Kind::Store && from.iter().enumerate().all(is_there);
        let who = self.warps[w].who(lane);
        match place {
            Place::Global => self.global.touch(at, bytes, kind, who, same),
            Place::Shared => self.shared.touch(at, bytes, kind, who, same),
        }
    }

    fn count(&mut self, (place, bytes, kind): (Place, usize, Kind), at: &Lanes, mask: u32) {
        match place {
            Place::Global => self.global.count(at, mask, bytes, kind),
            Place::Shared => self.shared.count(at, mask, bytes),
        }
    }

    fn load(&self, place: Place, address: u64, bytes: usize) -> u64 {
        match place {
            // SAFETY: `transfer` has had the address checked before.
            Place::Global => unsafe { self.global.load(address, bytes) },
            Place::Shared => self.shared.load(address, bytes),
        }
    }

    fn store(&mut self, place: Place, address: u64, bytes: usize, value: u64) {
        match place {
            // SAFETY: `transfer` has had the address checked before.
            Place::Global => unsafe { self.global.store(address, bytes, value) },
            Place::Shared => self.shared.store(address, bytes, value),
        }
    }

    fn transfer(&mut self, w: usize, op: &Op, mask: u32) -> Result<(), String> {
        let kernel = self.kernel;
        let mut out = [0; LANES];
        match op {
            Op::Load { place, bytes, to, at } => {
                let at = self.warps[w].addresses(kernel, *at);
                let what = (*place, bytes * to.len(), Kind::Load);
                for lane in lanes(mask) {
                    self.access(w, what, lane, at[lane], &[])?;
                }
                for (part, to) in to.iter().enumerate() {
                    for lane in lanes(mask) {
                        out[lane] = self.load(*place, at[lane] + (part * bytes) as u64, *bytes);
                    }
                    self.warps[w].set(*to, mask, &out);
                }
                self.count(what, &at, mask);
            }
            Op::Store { place, bytes, from, at } => {
                let at = self.warps[w].addresses(kernel, *at);
                let from: Vec<Lanes> = from.iter().map(|f| *self.warps[w].get(kernel, *f)).collect();
                let what = (*place, bytes * from.len(), Kind::Store);
                for lane in lanes(mask) {
                    self.access(w, what, lane, at[lane], &from)?;
                    for (part, values) in from.iter().enumerate() {
                        self.store(*place, at[lane] + (part * bytes) as u64, *bytes, values[lane]);
                    }
                }
                self.count(what, &at, mask);
            }
            Op::Atomic { place, make, to, at, with } => {
                let at = self.warps[w].addresses(kernel, *at);
                let with = *self.warps[w].get(kernel, *with);
                let what = (*place, 4, Kind::Atomic);
                // No order of lanes is promised.
                let mut order: Vec<usize> = lanes(mask).collect();
                order.shuffle(self.random);
                for lane in order {
                    self.access(w, what, lane, at[lane], &[])?;
                    out[lane] = self.load(*place, at[lane], 4);
                    self.store(*place, at[lane], 4, make(out[lane] as u32, with[lane] as u32).into());
                }
                self.warps[w].set(*to, mask, &out);
                self.count(what, &at, mask);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The lane that a shuffle reads, and whether that is the one asked for. `c` holds the clamp, and the mask of segments from bit 8.
fn source_lane(mode: Shuffle, lane: i64, b: i64, c: u64) -> (usize, bool) {
    let (clamp, segment) = (c as i64 & 31, c as i64 >> 8 & 31);
    let most = (lane & segment) | (clamp & !segment);
    let (from, valid) = match mode {
        Shuffle::Up => (lane - b, lane - b >= most),
        Shuffle::Down => (lane + b, lane + b <= most),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= most),
        Shuffle::Index => {
            let from = (lane & segment) | (b & !segment);
            (from, from <= most)
        }
    };
    (if valid { from } else { lane } as usize & 31, valid)
}
