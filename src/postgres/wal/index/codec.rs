//! Numbers, texts and lists as bytes; see [`super::encode`] for the layout.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::NoIndex;
use crate::postgres::lsn::{Lsn, Timeline};
use crate::postgres::wal::reference::RelFileLocator;
use crate::postgres::wal::xlog::WalLevel;

/// What differences are taken to.
#[derive(Debug, Default)]
struct Last {
    lsn: u64,
    time: i64,
    xid: u32,
    locator: RelFileLocator,
}

#[derive(Debug, Default)]
pub struct Out {
    pub(super) bytes: Vec<u8>,
    last: Last,
}

#[derive(Debug)]
pub struct In<'a> {
    bytes: &'a [u8],
    last: Last,
}

pub(super) type Read<T> = Result<T, NoIndex>;

pub(super) fn damaged<T>(what: &'static str) -> Read<T> {
    Err(NoIndex::Damaged { what })
}

impl Out {
    pub fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    pub fn signed(&mut self, number: i64) {
        self.number(((number << 1) ^ (number >> 63)) as u64);
    }

    /// Bytes as they are, after their length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }
}

impl<'a> In<'a> {
    pub fn new(bytes: &'a [u8]) -> In<'a> {
        In { bytes, last: Last::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn byte(&mut self) -> Read<u8> {
        let Some((first, rest)) = self.bytes.split_first() else { return damaged("it ends too early") };
        self.bytes = rest;
        Ok(*first)
    }

    pub fn number(&mut self) -> Read<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        damaged("a number is too long")
    }

    pub fn signed(&mut self) -> Read<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// A count of items of at least a byte each.
    pub fn count(&mut self) -> Read<usize> {
        let count = self.number()? as usize;
        if count > self.bytes.len() { damaged("it ends too early") } else { Ok(count) }
    }

    pub fn raw(&mut self) -> Read<Vec<u8>> {
        let count = self.count()?;
        let (taken, rest) = self.bytes.split_at(count);
        self.bytes = rest;
        Ok(taken.to_vec())
    }
}

/// A value that knows how it is written.
pub trait Coded: Sized {
    fn put(&self, out: &mut Out);
    fn get(from: &mut In) -> Read<Self>;
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Coded for $type {
            fn put(&self, out: &mut Out) {
                out.number(u64::from(*self));
            }
            fn get(from: &mut In) -> Read<Self> {
                <$type>::try_from(from.number()?).or_else(|_| damaged("a number is too large"))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64);

/// A transaction id, as the difference to the last one.
#[derive(Debug, Clone, Copy)]
pub struct Xid(pub u32);

impl Coded for Xid {
    fn put(&self, out: &mut Out) {
        out.signed(i64::from(self.0.wrapping_sub(out.last.xid) as i32));
        out.last.xid = self.0;
    }

    fn get(from: &mut In) -> Read<Self> {
        from.last.xid = from.last.xid.wrapping_add(from.signed()? as u32);
        Ok(Xid(from.last.xid))
    }
}

impl Coded for bool {
    fn put(&self, out: &mut Out) {
        out.bytes.push(u8::from(*self));
    }

    fn get(from: &mut In) -> Read<Self> {
        match from.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => damaged("neither yes nor no"),
        }
    }
}

impl Coded for i64 {
    fn put(&self, out: &mut Out) {
        out.signed(*self);
    }

    fn get(from: &mut In) -> Read<Self> {
        from.signed()
    }
}

impl Coded for Lsn {
    fn put(&self, out: &mut Out) {
        out.signed(self.0.wrapping_sub(out.last.lsn) as i64);
        out.last.lsn = self.0;
    }

    fn get(from: &mut In) -> Read<Self> {
        from.last.lsn = from.last.lsn.wrapping_add(from.signed()? as u64);
        Ok(Lsn(from.last.lsn))
    }
}

/// Microseconds since 1970.
impl Coded for Timestamp {
    fn put(&self, out: &mut Out) {
        let time = self.as_microsecond();
        out.signed(time.wrapping_sub(out.last.time));
        out.last.time = time;
    }

    fn get(from: &mut In) -> Read<Self> {
        from.last.time = from.last.time.wrapping_add(from.signed()?);
        Timestamp::from_microsecond(from.last.time).or_else(|_| damaged("no time"))
    }
}

impl Coded for RelFileLocator {
    fn put(&self, out: &mut Out) {
        let last = std::mem::replace(&mut out.last.locator, *self);
        for (now, before) in [(self.tablespace, last.tablespace), (self.database, last.database), (self.number, last.number)] {
            out.signed(i64::from(now.wrapping_sub(before) as i32));
        }
    }

    fn get(from: &mut In) -> Read<Self> {
        let last = from.last.locator;
        let mut next = |before: u32| Read::Ok(before.wrapping_add(from.signed()? as u32));
        let (tablespace, database, number) = (next(last.tablespace)?, next(last.database)?, next(last.number)?);
        from.last.locator = RelFileLocator { tablespace, database, number };
        Ok(from.last.locator)
    }
}

impl Coded for WalLevel {
    fn put(&self, out: &mut Out) {
        self.0.put(out);
    }

    fn get(from: &mut In) -> Read<Self> {
        Ok(WalLevel(Coded::get(from)?))
    }
}

impl Coded for Timeline {
    fn put(&self, out: &mut Out) {
        self.0.put(out);
    }

    fn get(from: &mut In) -> Read<Self> {
        Ok(Timeline(Coded::get(from)?))
    }
}

impl Coded for String {
    fn put(&self, out: &mut Out) {
        out.raw(self.as_bytes());
    }

    fn get(from: &mut In) -> Read<Self> {
        String::from_utf8(from.raw()?).or_else(|_| damaged("a text is none"))
    }
}

impl<T: Coded> Coded for Option<T> {
    fn put(&self, out: &mut Out) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(from: &mut In) -> Read<Self> {
        Ok(if bool::get(from)? { Some(T::get(from)?) } else { None })
    }
}

impl<T: Coded> Coded for Vec<T> {
    fn put(&self, out: &mut Out) {
        out.number(self.len() as u64);
        self.iter().for_each(|item| item.put(out));
    }

    fn get(from: &mut In) -> Read<Self> {
        (0..from.count()?).map(|_| T::get(from)).collect()
    }
}

impl<T: Coded, U: Coded> Coded for (T, U) {
    fn put(&self, out: &mut Out) {
        self.0.put(out);
        self.1.put(out);
    }

    fn get(from: &mut In) -> Read<Self> {
        Ok((T::get(from)?, U::get(from)?))
    }
}

impl<K: Coded + Ord, V: Coded> Coded for BTreeMap<K, V> {
    fn put(&self, out: &mut Out) {
        out.number(self.len() as u64);
        for (key, value) in self {
            key.put(out);
            value.put(out);
        }
    }

    fn get(from: &mut In) -> Read<Self> {
        (0..from.count()?).map(|_| Coded::get(from)).collect()
    }
}

impl<T: Coded + Ord> Coded for BTreeSet<T> {
    fn put(&self, out: &mut Out) {
        out.number(self.len() as u64);
        self.iter().for_each(|item| item.put(out));
    }

    fn get(from: &mut In) -> Read<Self> {
        (0..from.count()?).map(|_| T::get(from)).collect()
    }
}
