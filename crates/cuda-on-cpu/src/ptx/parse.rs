//! Reads the PTX that NVRTC writes.

mod operations;

use super::{Address, Instruction, Kernel, LANES, Op, Operand, Variable};
use std::collections::{BTreeMap, HashMap};

/// Bytes between shared variables, so that an access past the end of one does not reach another.
const GAP: u32 = 64;

/// Kernels by name.
pub type Kernels = BTreeMap<String, Kernel>;

/// The kernels of a program.
///
/// # Errors
/// What is not known here, with its statement.
pub fn parse(text: &str) -> Result<Kernels, String> {
    // What follows is for debuggers.
    let text = text.split("\n\t.section").next().unwrap_or_default();
    let text: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect();
    let mut files = HashMap::new();
    for line in text.lines().filter_map(|line| line.trim().strip_prefix(".file")) {
        let mut words = line.split_whitespace();
        if let (Some(number), Some(name)) = (words.next(), words.next()) {
            files.insert(number.to_owned(), name.trim_matches(['"', ',']).to_owned());
        }
    }
    // Those of kernels stand further in.
    let outside = |line: &&str| line.starts_with(".shared") || line.starts_with(".extern .shared");
    let outside: Vec<&str> = text.lines().filter(outside).map(|line| line.trim_end_matches(';')).collect();
    let kernel =
        |text| Reader::new(&outside, &files).kernel(text).map(|kernel| (kernel.name.clone(), kernel));
    text.split(".visible .entry ").skip(1).map(kernel).collect()
}

/// Kinds of registers by their declared type; a predicate is a bit a lane.
#[derive(Clone, Copy)]
enum Name {
    Register(u32),
    Predicate(u32),
}

struct Reader<'a> {
    outside: &'a [&'a str],
    files: &'a HashMap<String, String>,
    scopes: Vec<HashMap<String, Name>>,
    shared: HashMap<String, u32>,
    labels: HashMap<String, u32>,
    /// Instructions whose branch waits for its label.
    branches: Vec<(usize, String)>,
    numbers: HashMap<u64, u32>,
    kernel: Kernel,
}

impl<'a> Reader<'a> {
    fn new(outside: &'a [&'a str], files: &'a HashMap<String, String>) -> Self {
        let kernel = Kernel {
            name: String::new(),
            parameters: vec![],
            most: 1024,
            code: vec![],
            registers: 0,
            predicates: 0,
            constants: vec![],
            variables: vec![],
            dynamic: 0,
            lines: vec![String::new()],
        };
        Self {
            outside,
            files,
            scopes: vec![],
            shared: HashMap::new(),
            labels: HashMap::new(),
            branches: vec![],
            numbers: HashMap::new(),
            kernel,
        }
    }

    fn kernel(mut self, text: &str) -> Result<Kernel, String> {
        let (name, rest) = text.split_once('(').ok_or("a kernel without parameters")?;
        let (parameters, rest) = rest.split_once(')').ok_or("parameters without an end")?;
        let (head, body) = rest.split_once('{').ok_or("a kernel without a body")?;
        self.kernel.name = name.trim().to_owned();
        for parameter in parameters.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let kind = parameter.split_whitespace().nth(1).unwrap_or_default();
            let bytes = bits(kind).filter(|_| !parameter.ends_with(']'));
            self.kernel
                .parameters
                .push(bytes.ok_or(format!("parameter `{parameter}` is not known"))? as usize / 8);
        }
        if let Some(bounds) = head.split(".maxntid").nth(1) {
            let first = bounds.split([',', '\n', '.']).next().unwrap_or_default();
            self.kernel.most =
                first.trim().parse().map_err(|_| format!("`.maxntid{bounds}` is not a number"))?;
        }
        for declaration in self.outside {
            let used = declaration.split_whitespace().last().and_then(|w| w.split('[').next());
            if used.is_some_and(|name| body.contains(name)) {
                self.variable(declaration)?;
            }
        }
        self.body(body).map_err(|told| format!("{}: {told}", self.kernel.name))?;
        self.finish()
    }

    fn finish(mut self) -> Result<Kernel, String> {
        for (at, label) in &self.branches {
            let target = *self.labels.get(label).ok_or_else(|| format!("there is no label {label}"))?;
            self.kernel.code[*at].op = Op::Branch { to: target };
        }
        Ok(self.kernel)
    }

    /// A declaration of shared memory; dynamic memory comes after all others.
    fn variable(&mut self, text: &str) -> Result<(), String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.iter().position(|w| *w == ".align").ok_or_else(|| format!("`{text}` is not known"))?;
        let align: u32 = words[at + 1].parse().map_err(|_| format!("`{text}`: no alignment"))?;
        let size = bits(words[at + 2]).ok_or_else(|| format!("`{text}`: type is not known"))? / 8;
        let (name, count) = words[at + 3].split_once('[').unwrap_or((words[at + 3], "1]"));
        if words.contains(&".extern") {
            self.shared.insert(name.to_owned(), u32::MAX);
            return Ok(());
        }
        let count: u32 = count.trim_end_matches(']').parse().map_err(|_| format!("`{text}`: no size"))?;
        let offset = self.kernel.dynamic.next_multiple_of(align.max(16));
        self.shared.insert(name.to_owned(), offset);
        self.kernel.variables.push(Variable { name: name.to_owned(), offset, bytes: size * count });
        self.kernel.dynamic = (offset + size * count + GAP).next_multiple_of(16);
        Ok(())
    }

    fn body(&mut self, text: &str) -> Result<(), String> {
        self.scopes.push(HashMap::new());
        let mut rest = text.trim_start();
        while !self.scopes.is_empty() {
            if let Some(more) = rest.strip_prefix('{') {
                self.scopes.push(HashMap::new());
                rest = more.trim_start();
            } else if let Some(more) = rest.strip_prefix('}') {
                self.scopes.pop();
                rest = more.trim_start();
            } else if rest.starts_with(".loc") {
                let (line, more) = rest.split_once('\n').ok_or("no end")?;
                self.line(line);
                rest = more.trim_start();
            } else {
                let end = rest.find([';', ':']).ok_or("no end")?;
                let statement = rest[..end].trim();
                if rest[end..].starts_with(':') {
                    self.labels.insert(statement.to_owned(), self.kernel.code.len() as u32);
                } else {
                    self.statement(statement).map_err(|told| format!("`{statement}`: {told}"))?;
                }
                rest = rest[end + 1..].trim_start();
            }
        }
        Ok(())
    }

    /// `.loc FILE LINE COLUMN[, function_name LABEL, inlined_at FILE LINE COLUMN]`
    fn line(&mut self, text: &str) {
        let place = |text: &str| {
            let mut words = text.split_whitespace();
            let file = words.next().and_then(|n| self.files.get(n)).map_or("?", String::as_str);
            format!("{}:{}", file.rsplit('/').next().unwrap_or(file), words.next().unwrap_or("?"))
        };
        let text = text.trim_start_matches(".loc");
        let caller =
            text.split_once("inlined_at").map(|(_, caller)| format!(", called at {}", place(caller)));
        let line = place(text) + caller.as_deref().unwrap_or_default();
        self.kernel.lines.push(line);
    }

    fn statement(&mut self, text: &str) -> Result<(), String> {
        if let Some(declared) = text.strip_prefix(".reg") {
            return self.registers(declared);
        }
        if text.starts_with(".shared") {
            return self.variable(text);
        }
        if text.starts_with(".pragma") {
            return Ok(());
        }
        let (guard, text) = match text.strip_prefix('@') {
            Some(guarded) => {
                let (guard, text) = guarded.split_once(char::is_whitespace).ok_or("no instruction")?;
                let wanted = !guard.starts_with('!');
                (Some((self.predicate(guard.trim_start_matches('!'))?, wanted)), text.trim())
            }
            None => (None, text),
        };
        let (name, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let operands = split(operands);
        let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
        let op = self.operation(name, &operands)?;
        let line = self.kernel.lines.len() as u32 - 1;
        self.kernel.code.push(Instruction { guard, op, line });
        Ok(())
    }

    /// `.b32 %r<10>` or `.pred %p1`.
    fn registers(&mut self, text: &str) -> Result<(), String> {
        let (kind, name) = text.trim().split_once(char::is_whitespace).ok_or("no name")?;
        let (name, count) = name.trim().split_once('<').unwrap_or((name.trim(), ""));
        let names: Vec<String> = match count.trim_end_matches('>').parse::<u32>() {
            Ok(count) => (0..count).map(|i| format!("{name}{i}")).collect(),
            Err(_) => vec![name.to_owned()],
        };
        for name in names {
            let slot = if kind == ".pred" {
                self.kernel.predicates += 1;
                Name::Predicate(self.kernel.predicates as u32 - 1)
            } else {
                Name::Register(self.register_slot())
            };
            self.scopes.last_mut().ok_or("no scope")?.insert(name, slot);
        }
        Ok(())
    }

    fn register_slot(&mut self) -> u32 {
        self.kernel.registers += 1;
        self.kernel.registers as u32 - 1
    }

    fn find(&self, name: &str) -> Option<Name> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    fn predicate(&self, name: &str) -> Result<u32, String> {
        match self.find(name) {
            Some(Name::Predicate(slot)) => Ok(slot),
            _ => Err(format!("{name} is no predicate")),
        }
    }

    fn register(&self, name: &str) -> Result<u32, String> {
        match self.find(name) {
            Some(Name::Register(slot)) => Ok(slot),
            _ => Err(format!("{name} is no register")),
        }
    }

    fn constant(&mut self, value: u64) -> Operand {
        let next = self.kernel.constants.len() as u32;
        let slot = *self.numbers.entry(value).or_insert(next);
        if slot == next {
            self.kernel.constants.push([value; LANES]);
        }
        Operand::Constant(slot)
    }

    /// A source of `bits` bits: a register, a number, or a shared variable's address.
    fn source(&mut self, text: &str, bits: u32) -> Result<Operand, String> {
        if let Some(Name::Register(slot)) = self.find(text) {
            return Ok(Operand::Register(slot));
        }
        let value = match self.number(text)? {
            Some(v) if bits < 64 => v & ((1 << bits) - 1),
            Some(v) => v,
            None => u64::from(self.symbol(text)?),
        };
        Ok(self.constant(value))
    }

    fn number(&self, text: &str) -> Result<Option<u64>, String> {
        let hex =
            |digits: &str| u64::from_str_radix(digits, 16).map(Some).map_err(|e| format!("{text}: {e}"));
        if let Some(digits) = ["0f", "0F", "0d", "0D", "0x", "0X"].iter().find_map(|p| text.strip_prefix(p)) {
            return hex(digits);
        }
        let plain = text.trim_end_matches('U');
        Ok(plain.parse::<i64>().map(|v| v as u64).or_else(|_| plain.parse::<u64>()).ok())
    }

    /// Address of a shared variable.
    fn symbol(&mut self, name: &str) -> Result<u32, String> {
        match self.shared.get(name) {
            // Known when the declarations are: those of a body stand before its instructions.
            Some(&u32::MAX) => Ok(self.kernel.dynamic),
            Some(&offset) => Ok(offset),
            None => Err(format!("{name} is not known")),
        }
    }

    /// `[base]`, `[base+offset]`
    fn address(&mut self, text: &str) -> Result<Address, String> {
        let inner = text.trim_start_matches('[').trim_end_matches(']');
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        let offset = offset.trim().parse().map_err(|_| format!("{text} has no offset"))?;
        Ok(Address { base: self.source(base.trim(), 64)?, offset })
    }

    /// Registers of `{a, b}`, or of `a`.
    fn many(&self, text: &str) -> Result<Vec<u32>, String> {
        text.trim_matches(['{', '}']).split(',').map(|name| self.register(name.trim())).collect()
    }

    fn sources(&mut self, text: &str, bits: u32) -> Result<Vec<Operand>, String> {
        text.trim_matches(['{', '}']).split(',').map(|name| self.source(name.trim(), bits)).collect()
    }
}

/// Bits of a type.
fn bits(kind: &str) -> Option<u32> {
    let digits = kind.trim_start_matches(['.', 'u', 's', 'f', 'b']);
    digits.parse().ok().filter(|b| [8, 16, 32, 64].contains(b))
}

/// Operands at commas outside braces and brackets.
fn split(text: &str) -> Vec<String> {
    let (mut depth, mut list) = (0, vec![String::new()]);
    for c in text.trim().chars() {
        match c {
            ',' if depth == 0 => list.push(String::new()),
            _ => {
                depth += i32::from(matches!(c, '{' | '[')) - i32::from(matches!(c, '}' | ']'));
                let last = list.len() - 1;
                list[last].push(c);
            }
        }
    }
    list.into_iter().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect()
}
