//! How the ABI's structures are serialised, which know nothing of that: as their bytes. For `#[serde(with = "…")]`.

use linux_uapi::zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Anything that holds such structures one after the other.
pub(crate) trait Holder: FromIterator<Self::Item> {
    type Item: FromBytes + FromZeros + IntoBytes + Immutable + KnownLayout;
    fn bytes(&self) -> Vec<u8>;
}

impl<T: FromBytes + FromZeros + IntoBytes + Immutable + KnownLayout> Holder for std::collections::VecDeque<T> {
    type Item = T;
    fn bytes(&self) -> Vec<u8> {
        self.iter().flat_map(|item| item.as_bytes().iter().copied()).collect()
    }
}

/// A list, or any other holder.
pub(crate) mod list {
    use super::*;

    pub(crate) fn serialize<H: Holder, S: Serializer>(list: &H, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&list.bytes())
    }

    pub(crate) fn deserialize<'de, H: Holder, D: Deserializer<'de>>(deserializer: D) -> Result<H, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        let items = bytes.chunks_exact(size_of::<H::Item>()).map(H::Item::read_from_bytes);
        items.map(|item| item.map_err(|_| D::Error::custom("not a structure of the ABI"))).collect()
    }
}

/// One structure.
pub(crate) mod one {
    use super::*;

    pub(crate) fn serialize<T: IntoBytes + Immutable, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(value.as_bytes())
    }

    pub(crate) fn deserialize<'de, T: FromBytes, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        T::read_from_bytes(&bytes).map_err(|_| D::Error::custom("not a structure of the ABI"))
    }
}

/// A structure in a container of serde's.
#[derive(Serialize, Deserialize)]
#[serde(bound(serialize = "T: IntoBytes + Immutable", deserialize = "T: FromBytes"))]
struct Plain<T>(#[serde(with = "one")] T);

/// One structure or none.
pub(crate) mod option {
    use super::*;

    pub(crate) fn serialize<T: IntoBytes + Immutable + Copy, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(Plain).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: FromBytes, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        Ok(Option::<Plain<T>>::deserialize(deserializer)?.map(|plain| plain.0))
    }
}

/// Places, each with a structure and whose it is, or empty.
pub(crate) mod places {
    use super::*;

    pub(crate) fn serialize<T: IntoBytes + Immutable + Copy, O: Serialize + Copy, S: Serializer>(
        places: &[Option<(T, O)>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(places.iter().map(|place| place.map(|(value, owner)| (Plain(value), owner))))
    }

    pub(crate) fn deserialize<'de, T: FromBytes, O: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Option<(T, O)>>, D::Error> {
        let places = Vec::<Option<(Plain<T>, O)>>::deserialize(deserializer)?;
        Ok(places.into_iter().map(|place| place.map(|(plain, owner)| (plain.0, owner))).collect())
    }
}
