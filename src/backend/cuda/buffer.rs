//! Device memory with a type: what launchers check sizes against.

use super::device::{Arg, Device, Element, Matrix, Memory};
use crate::error::{Error, Result};
use bytemuck::Pod;
use std::marker::PhantomData;

fn too_small(what: &str, held: usize, wanted: usize) -> Error {
    Error::Failed(format!("{what} holds {held} values where {wanted} are needed; please report this"))
}

/// `len` values of a plain type.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: Memory,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Zeros.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn zeros(device: &mut dyn Device, len: usize, what: &'static str) -> Result<Self> {
        let memory = device.allocate(len.max(1) * size_of::<T>(), what)?;
        Ok(Self { memory, len, kind: PhantomData })
    }

    /// Values held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// A pointer argument for a kernel that touches the first `len` values.
    ///
    /// # Errors
    /// Fewer values are held.
    pub fn holds(&self, len: usize) -> Result<Arg> {
        self.part(0, len)
    }

    /// A pointer argument for a kernel that touches `len` values from `first` on.
    ///
    /// # Errors
    /// Fewer values are held.
    pub fn part(&self, first: usize, len: usize) -> Result<Arg> {
        if first + len > self.len {
            return Err(too_small(self.memory.what(), self.len, first + len));
        }
        Ok(Arg::Pointer(self.memory.address() + (first * size_of::<T>()) as u64))
    }

    /// Copies `values` to the front.
    ///
    /// # Errors
    /// Fewer values are held, or the device fails.
    pub fn write(&mut self, device: &mut dyn Device, values: &[T]) -> Result<()> {
        self.holds(values.len())?;
        device.write(&mut self.memory, 0, bytemuck::cast_slice(values))
    }

    /// The first `len` values.
    ///
    /// # Errors
    /// Fewer values are held, or the device fails.
    pub fn read(&self, device: &mut dyn Device, len: usize) -> Result<Vec<T>> {
        self.holds(len)?;
        let mut values = vec![T::zeroed(); len];
        device.read(&self.memory, 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Queues filling the first `len` values with zero bytes.
    ///
    /// # Errors
    /// Fewer values are held, or the device fails.
    pub fn zero(&mut self, device: &mut dyn Device, len: usize) -> Result<()> {
        self.holds(len)?;
        device.zero(&mut self.memory, 0..len * size_of::<T>())
    }

    /// The memory itself.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }
}

impl Buffer<f32> {
    /// `rows` rows of `stride` values from row `first` on, of which `cols` are used, as an operand.
    ///
    /// # Errors
    /// Fewer values are held.
    pub fn matrix(&self, first: usize, rows: usize, cols: usize, stride: usize) -> Result<Matrix> {
        self.holds((first + rows) * stride)?;
        let address = self.memory.address() + (first * stride * 4) as u64;
        Ok(Matrix { address, element: Element::F32, rows, cols, stride })
    }
}

/// `len` values in the type of the products' operands.
#[derive(Debug)]
pub struct Values {
    memory: Memory,
    element: Element,
    len: usize,
}

impl Values {
    /// Zeros.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn zeros(device: &mut dyn Device, element: Element, len: usize, what: &'static str) -> Result<Self> {
        let memory = device.allocate(len.max(1) * element.size(), what)?;
        Ok(Self { memory, element, len })
    }

    /// Type of the values.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// A pointer argument for a kernel that touches the first `len` values.
    ///
    /// # Errors
    /// Fewer values are held.
    pub fn holds(&self, len: usize) -> Result<Arg> {
        if len > self.len {
            return Err(too_small(self.memory.what(), self.len, len));
        }
        Ok(Arg::Pointer(self.memory.address()))
    }

    /// `rows` rows of `stride` values from row `first` on, of which `cols` are used, as an operand.
    ///
    /// # Errors
    /// Fewer values are held.
    pub fn matrix(&self, first: usize, rows: usize, cols: usize, stride: usize) -> Result<Matrix> {
        self.holds((first + rows) * stride)?;
        let address = self.memory.address() + (first * stride * self.element.size()) as u64;
        Ok(Matrix { address, element: self.element, rows, cols, stride })
    }

    /// Copies `values` to the front, rounded to the type.
    ///
    /// # Errors
    /// Fewer values are held, or the device fails.
    pub fn write(&mut self, device: &mut dyn Device, values: &[f32]) -> Result<()> {
        self.holds(values.len())?;
        match self.element {
            Element::F32 => device.write(&mut self.memory, 0, bytemuck::cast_slice(values)),
            Element::Bf16 => {
                let rounded: Vec<half::bf16> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
                device.write(&mut self.memory, 0, bytemuck::cast_slice(&rounded))
            }
        }
    }

    /// The first `len` values as float32.
    ///
    /// # Errors
    /// Fewer values are held, or the device fails.
    pub fn read(&self, device: &mut dyn Device, len: usize) -> Result<Vec<f32>> {
        self.holds(len)?;
        match self.element {
            Element::F32 => {
                let mut values = vec![0.0f32; len];
                device.read(&self.memory, 0, bytemuck::cast_slice_mut(&mut values))?;
                Ok(values)
            }
            Element::Bf16 => {
                let mut values = vec![half::bf16::ZERO; len];
                device.read(&self.memory, 0, bytemuck::cast_slice_mut(&mut values))?;
                Ok(values.iter().map(|v| v.to_f32()).collect())
            }
        }
    }
}
