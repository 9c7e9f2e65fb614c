//! Reading and writing the binary frames of [`crate::bundle`] and [`crate::job`]: big-endian numbers and
//! length-prefixed bytes. Reading slices the message without copying it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chrono::{DateTime, TimeZone, Utc};
use uuid::Uuid;

/// Why bytes can't be read as a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A version that this binary doesn't know: never poison, a newer pod wrote it.
    #[error("bundle version {0} is newer than this program knows")]
    UnknownVersion(u8),
    /// The bytes end early, or a length is wrong.
    #[error("the bundle is cut short or damaged at byte {0}")]
    Damaged(usize),
    /// A text is not UTF-8.
    #[error("a text in the bundle is not UTF-8")]
    NotText,
}

pub(crate) struct Reader {
    bytes: Bytes,
    total: usize,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { total: bytes.len(), bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn need(&self, n: usize) -> Result<(), WireError> {
        if self.bytes.remaining() < n { Err(WireError::Damaged(self.total - self.bytes.len())) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    pub(crate) fn i32(&mut self) -> Result<i32, WireError> {
        self.need(4)?;
        Ok(self.bytes.get_i32())
    }

    pub(crate) fn i64(&mut self) -> Result<i64, WireError> {
        self.need(8)?;
        Ok(self.bytes.get_i64())
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid, WireError> {
        self.need(16)?;
        Ok(Uuid::from_u128(self.bytes.get_u128()))
    }

    pub(crate) fn time(&mut self) -> Result<DateTime<Utc>, WireError> {
        let at = self.total - self.bytes.len();
        Utc.timestamp_micros(self.i64()?).single().ok_or(WireError::Damaged(at))
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, WireError> {
        self.need(4)?;
        let len = self.bytes.get_u32() as usize;
        self.need(len)?;
        Ok(self.bytes.split_to(len))
    }

    pub(crate) fn text<T>(&mut self, make: impl FnOnce(&str) -> T) -> Result<T, WireError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(&bytes).map(make).map_err(|_| WireError::NotText)
    }
}

pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).expect("a frame is limited to a few MiB"));
    out.put_slice(bytes);
}

pub(crate) fn put_uuid(out: &mut BytesMut, id: Uuid) {
    out.put_u128(id.as_u128());
}

pub(crate) fn put_time(out: &mut BytesMut, at: DateTime<Utc>) {
    out.put_i64(at.timestamp_micros());
}
