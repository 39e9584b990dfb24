//! Deserialization with a budget: each element of a sequence whose length the encoding chooses costs its size in memory.
//!
//! A wrapper around another deserializer, and around everything that it hands out, so that nested sequences pay too.

use core::cell::Cell;
use core::fmt;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Bytes that may still be taken; `None`: it was not enough.
type Left = Cell<Option<usize>>;

/// Something of serde's, and the budget.
pub(super) struct Within<'b, T> {
    pub(super) inner: T,
    pub(super) left: &'b Left,
}

impl<'b, T> Within<'b, T> {
    fn with<U>(&self, inner: U) -> Within<'b, U> {
        Within { inner, left: self.left }
    }

    fn pay(&self, bytes: usize) -> bool {
        self.left.set(self.left.get().and_then(|left| left.checked_sub(bytes)));
        self.left.get().is_some()
    }
}

/// A visitor whose sequences cost (`PAYS`), or have a length that the type gives.
struct Watch<'b, V, const PAYS: bool>(Within<'b, V>);

macro_rules! pass_on {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            let watch = Watch::<V, false>(self.with(visitor));
            self.inner.$method(watch)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Within<'_, D> {
    type Error = D::Error;

    pass_on! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
        deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf deserialize_option
        deserialize_unit deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let watch = Watch::<V, true>(self.with(visitor));
        self.inner.deserialize_seq(watch)
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let watch = Watch::<V, true>(self.with(visitor));
        self.inner.deserialize_map(watch)
    }
    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        let watch = Watch::<V, false>(self.with(visitor));
        self.inner.deserialize_unit_struct(name, watch)
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        let watch = Watch::<V, false>(self.with(visitor));
        self.inner.deserialize_newtype_struct(name, watch)
    }
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        let watch = Watch::<V, false>(self.with(visitor));
        self.inner.deserialize_tuple(len, watch)
    }
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watch = Watch::<V, false>(self.with(visitor));
        self.inner.deserialize_tuple_struct(name, len, watch)
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watch = Watch::<V, false>(self.with(visitor));
        self.inner.deserialize_struct(name, fields, watch)
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watch = Watch::<V, false>(self.with(visitor));
        self.inner.deserialize_enum(name, variants, watch)
    }
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! pass_back {
    ($($method:ident: $t:ty),* $(,)?) => {$(
        fn $method<E: Error>(self, value: $t) -> Result<V::Value, E> {
            self.0.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>, const PAYS: bool> Visitor<'de> for Watch<'_, V, PAYS> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.inner.expecting(f)
    }

    // Numbers with fractions are in no message.
    pass_back! {
        visit_bool: bool, visit_i8: i8, visit_i16: i16, visit_i32: i32, visit_i64: i64, visit_i128: i128,
        visit_u8: u8, visit_u16: u16, visit_u32: u32, visit_u64: u64, visit_u128: u128,
        visit_char: char, visit_str: &str, visit_borrowed_str: &'de str, visit_string: alloc::string::String,
        visit_bytes: &[u8], visit_borrowed_bytes: &'de [u8], visit_byte_buf: alloc::vec::Vec<u8>,
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.inner.visit_none()
    }
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.inner.visit_unit()
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        let d = self.0.with(d);
        self.0.inner.visit_some(d)
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        let d = self.0.with(d);
        self.0.inner.visit_newtype_struct(d)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, a: A) -> Result<V::Value, A::Error> {
        let a = Watch::<A, PAYS>(self.0.with(a));
        self.0.inner.visit_seq(a)
    }
    fn visit_map<A: MapAccess<'de>>(self, a: A) -> Result<V::Value, A::Error> {
        let a = Watch::<A, PAYS>(self.0.with(a));
        self.0.inner.visit_map(a)
    }
    fn visit_enum<A: EnumAccess<'de>>(self, a: A) -> Result<V::Value, A::Error> {
        let a = self.0.with(a);
        self.0.inner.visit_enum(a)
    }
}

impl<'de, A: SeqAccess<'de>, const PAYS: bool> SeqAccess<'de> for Watch<'_, A, PAYS> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        if PAYS && !self.0.pay(size_of::<S::Value>()) {
            return Err(A::Error::custom("it swells"));
        }
        let seed = self.0.with(seed);
        self.0.inner.next_element_seed(seed)
    }
    fn size_hint(&self) -> Option<usize> {
        self.0.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>, const PAYS: bool> MapAccess<'de> for Watch<'_, A, PAYS> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        if PAYS && !self.0.pay(size_of::<S::Value>()) {
            return Err(A::Error::custom("it swells"));
        }
        let seed = self.0.with(seed);
        self.0.inner.next_key_seed(seed)
    }
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        if PAYS && !self.0.pay(size_of::<S::Value>()) {
            return Err(A::Error::custom("it swells"));
        }
        let seed = self.0.with(seed);
        self.0.inner.next_value_seed(seed)
    }
    fn size_hint(&self) -> Option<usize> {
        self.0.inner.size_hint()
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Within<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<S::Value, D::Error> {
        let d = self.with(d);
        self.inner.deserialize(d)
    }
}

impl<'b, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Within<'b, A> {
    type Error = A::Error;
    type Variant = Within<'b, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let seed = self.with(seed);
        let left = self.left;
        let (value, variant) = self.inner.variant_seed(seed)?;
        Ok((value, Within { inner: variant, left }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.with(seed);
        self.inner.newtype_variant_seed(seed)
    }
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let watch = Watch::<V, false>(self.with(visitor));
        self.inner.tuple_variant(len, watch)
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let watch = Watch::<V, false>(self.with(visitor));
        self.inner.struct_variant(fields, watch)
    }
}
