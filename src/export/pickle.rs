//! The little of Python's pickle that a PyTorch state dict needs (protocol 2, `pickletools.py` of CPython has the
//! opcodes; `torch/_utils.py` and `torch/serialization.py` what the objects mean).
//!
//! Nothing is ever called: a pickle can name only what [`Reader`] knows to be a tensor, a storage or an ordered dict.

use std::rc::Rc;

/// A value of a state dict.
#[derive(Debug, Clone)]
pub enum Value {
    /// `None`.
    None,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A real number.
    Float(f64),
    /// A text.
    Text(Rc<str>),
    /// A tuple or list.
    Tuple(Rc<Vec<Value>>),
    /// A dict, in order.
    Dict(Rc<Vec<(Value, Value)>>),
    /// A name, as `module name`.
    Global(Rc<str>),
    /// A tensor's place.
    Tensor(Rc<TensorAt>),
    /// What [`Reader`] reads between `(` and its end.
    Mark,
}

/// Where a tensor's values are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorAt {
    /// `FloatStorage`, `IntStorage`, ...
    pub storage: String,
    /// File of the storage in the archive, `data/<key>`.
    pub key: String,
    /// First value, in values.
    pub offset: usize,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values between neighbours, by dimension.
    pub strides: Vec<usize>,
}

/// Writes a state dict.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins a pickle with a dict.
    pub fn new() -> Self {
        Self { bytes: vec![0x80, 2, b'}', b'('] }
    }

    /// Begins a dict inside it, under `name`.
    pub fn begin(&mut self, name: &str) {
        self.text(name);
        self.bytes.extend(b"}(");
    }

    /// Ends the dict begun last.
    pub fn end(&mut self) {
        self.bytes.push(b'u');
    }

    /// The finished pickle.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend(b"u.");
        self.bytes
    }

    /// A text (BINUNICODE).
    pub fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    /// A whole number: BININT in 32 bits, else LONG1.
    pub fn int(&mut self, value: usize) {
        match i32::try_from(value) {
            Ok(small) => {
                self.bytes.push(b'J');
                self.bytes.extend(small.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 9]);
                self.bytes.extend((value as u64).to_le_bytes());
                // The sign.
                self.bytes.push(0);
            }
        }
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.extend(format!("c{module}\n{name}\n").bytes());
    }

    fn ints(&mut self, values: &[usize]) {
        self.bytes.push(b'(');
        for &value in values {
            self.int(value);
        }
        self.bytes.push(b't');
    }

    /// A contiguous tensor whose values are all of `data/<key>`, as `torch._utils._rebuild_tensor_v2` takes it.
    pub fn tensor(&mut self, storage: &str, key: &str, shape: &[usize]) {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.bytes.extend(b"((");
        self.text("storage");
        self.global("torch", storage);
        self.text(key);
        self.text("cpu");
        self.int(shape.iter().product());
        self.bytes.extend(b"tQ");
        self.int(0);
        self.ints(shape);
        let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        self.ints(&strides);
        // requires_grad: False; backward hooks: none.
        self.bytes.push(0x89);
        self.global("collections", "OrderedDict");
        self.bytes.extend(b")RtR");
    }
}

/// More than any state dict has; it also bounds the depth of nesting.
const MOST_OPCODES: usize = 20_000;

/// Reads a state dict.
pub struct Reader<'a> {
    bytes: &'a [u8],
    stack: Vec<Value>,
    memo: Vec<Option<Value>>,
}

type Read<T> = Result<T, String>;

impl<'a> Reader<'a> {
    /// The value that `bytes` hold.
    ///
    /// # Errors
    /// What is not understood, in words that follow "its pickle".
    pub fn read(bytes: &'a [u8]) -> Read<Value> {
        let mut reader = Self { bytes, stack: vec![], memo: vec![] };
        for _ in 0..MOST_OPCODES {
            if reader.step()? {
                return reader.pop();
            }
        }
        Err(format!("has more than {MOST_OPCODES} steps"))
    }

    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(n).ok_or("ends early")?;
        self.bytes = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Read<usize> {
        Ok(usize::from(self.take(1)?[0]))
    }

    fn u32(&mut self) -> Read<usize> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }

    fn line(&mut self) -> Read<String> {
        let end = self.bytes.iter().position(|&b| b == b'\n').ok_or("ends early")?;
        let line = self.take(end)?;
        self.take(1)?;
        String::from_utf8(line.to_vec()).map_err(|_| "holds a name that is no text".into())
    }

    fn pop(&mut self) -> Read<Value> {
        self.stack.pop().ok_or_else(|| "takes a value that is not there".into())
    }

    fn pop_to_mark(&mut self) -> Read<Vec<Value>> {
        let mark = self.stack.iter().rposition(|v| matches!(v, Value::Mark)).ok_or("has no mark")?;
        let values = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(values)
    }

    fn tuple(&mut self, n: usize) -> Read<()> {
        let at = self.stack.len().checked_sub(n).ok_or("takes a value that is not there")?;
        let values = self.stack.split_off(at);
        self.stack.push(Value::Tuple(Rc::new(values)));
        Ok(())
    }

    fn remember(&mut self, at: usize) -> Read<()> {
        if at > MOST_OPCODES {
            return Err("remembers too much".into());
        }
        if self.memo.len() <= at {
            self.memo.resize(at + 1, None);
        }
        self.memo[at] = self.stack.last().cloned();
        Ok(())
    }

    fn recall(&mut self, at: usize) -> Read<()> {
        let value = self.memo.get(at).cloned().flatten().ok_or("recalls what it did not remember")?;
        self.stack.push(value);
        Ok(())
    }

    fn add_text(&mut self, n: usize) -> Read<()> {
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| "holds bytes that are no text")?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn add_pairs(&mut self, values: Vec<Value>) -> Read<()> {
        let Some(Value::Dict(dict)) = self.stack.last_mut() else {
            return Err("sets an item of something that is no dict".into());
        };
        let dict = Rc::make_mut(dict);
        let mut values = values.into_iter();
        while let (Some(key), Some(value)) = (values.next(), values.next()) {
            dict.push((key, value));
        }
        Ok(())
    }

    fn append(&mut self, values: Vec<Value>) -> Read<()> {
        let Some(Value::Tuple(list)) = self.stack.last_mut() else {
            return Err("appends to something that is no list".into());
        };
        Rc::make_mut(list).extend(values);
        Ok(())
    }

    /// One opcode; true at the end.
    fn step(&mut self) -> Read<bool> {
        let code = self.take(1)?[0];
        match code {
            b'.' => return Ok(true),
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.stack.push(Value::Mark),
            b'}' => self.stack.push(Value::Dict(Rc::default())),
            b')' | b']' => self.stack.push(Value::Tuple(Rc::default())),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let value = self.u32()? as u32 as i32;
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.byte()?;
                self.stack.push(Value::Int(value as i64));
            }
            b'M' => {
                let bytes = self.take(2)?;
                self.stack.push(Value::Int(u16::from_le_bytes([bytes[0], bytes[1]]).into()));
            }
            0x8a => {
                let n = self.byte()?;
                let value = long(self.take(n)?)?;
                self.stack.push(Value::Int(value));
            }
            b'G' => {
                let mut bits = 0u64;
                for &byte in self.take(8)? {
                    bits = bits << 8 | u64::from(byte);
                }
                self.stack.push(Value::Float(f64::from_bits(bits)));
            }
            b'X' => {
                let n = self.u32()?;
                self.add_text(n)?;
            }
            0x8c => {
                let n = self.byte()?;
                self.add_text(n)?;
            }
            b'c' => {
                let name = format!("{} {}", self.line()?, self.line()?);
                self.stack.push(Value::Global(name.into()));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(name), Value::Text(module)) = (name, module) else {
                    return Err("names something by values that are no text".into());
                };
                self.stack.push(Value::Global(format!("{module} {name}").into()));
            }
            b't' => {
                let values = self.pop_to_mark()?;
                self.stack.push(Value::Tuple(Rc::new(values)));
            }
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.add_pairs(vec![key, value])?;
            }
            b'u' => {
                let values = self.pop_to_mark()?;
                self.add_pairs(values)?;
            }
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' => {
                let values = self.pop_to_mark()?;
                self.append(values)?;
            }
            b'q' => {
                let at = self.byte()?;
                self.remember(at)?;
            }
            b'r' => {
                let at = self.u32()?;
                self.remember(at)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let at = self.byte()?;
                self.recall(at)?;
            }
            b'j' => {
                let at = self.u32()?;
                self.recall(at)?;
            }
            // A storage stays the tuple that names it, until a tensor is made of it.
            b'Q' => {}
            // State of an object beyond its items: PyTorch keeps version numbers there.
            b'b' => drop(self.pop()?),
            b'R' => self.reduce()?,
            other => return Err(format!("has an opcode {other:#04x} that no state dict needs")),
        }
        Ok(false)
    }

    fn reduce(&mut self) -> Read<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Global(name)) = (arguments, callable) else {
            return Err("calls something that has no name".into());
        };
        let made = match &*name {
            "collections OrderedDict" if arguments.is_empty() => Value::Dict(Rc::default()),
            "torch._utils _rebuild_tensor_v2" => Value::Tensor(Rc::new(tensor_at(&arguments)?)),
            // torch.save of a module's parameters themselves instead of its state dict.
            "torch._utils _rebuild_parameter" => {
                arguments.first().cloned().ok_or("has an empty parameter")?
            }
            other => return Err(format!("calls `{other}`, which no state dict needs")),
        };
        self.stack.push(made);
        Ok(())
    }
}

fn long(bytes: &[u8]) -> Read<i64> {
    let Some((&last, _)) = bytes.split_last() else { return Ok(0) };
    let fill = if last >= 0x80 { 0xff } else { 0 };
    if bytes.len() > 8 && bytes[8..].iter().any(|&b| b != fill) || bytes.len() > 9 {
        return Err("holds a number that is too large".into());
    }
    let mut wide = [fill; 8];
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(i64::from_le_bytes(wide))
}

fn tensor_at(arguments: &[Value]) -> Read<TensorAt> {
    let unknown = || "has a tensor that is not laid out as PyTorch does".to_owned();
    let size = |v: &Value| match v {
        Value::Int(v) => usize::try_from(*v).map_err(|_| unknown()),
        _ => Err(unknown()),
    };
    let sizes = |v: &Value| match v {
        Value::Tuple(values) => values.iter().map(size).collect::<Read<Vec<_>>>(),
        _ => Err(unknown()),
    };
    let [Value::Tuple(storage), offset, shape, strides, ..] = arguments else { return Err(unknown()) };
    let [Value::Text(kind), Value::Global(storage), Value::Text(key), ..] = &storage[..] else {
        return Err(unknown());
    };
    let (true, Some(storage)) = (&**kind == "storage", storage.strip_prefix("torch ")) else {
        return Err(unknown());
    };
    let (shape, strides) = (sizes(shape)?, sizes(strides)?);
    if shape.len() != strides.len() {
        return Err(unknown());
    }
    Ok(TensorAt { storage: storage.into(), key: key.to_string(), offset: size(offset)?, shape, strides })
}
