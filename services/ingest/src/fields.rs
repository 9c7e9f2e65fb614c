//! Reading a JSON object of a request field by field: strict types, unknown fields ignored, every error with
//! the path of its field. Used by [`crate::admit`] and by the endpoint routes.
//!
//! Values stay unread texts until asked for, so a payload keeps its bytes and a `null` can be told from a field
//! that isn't there. A field that stands there twice is refused: others on the request's way may have read the other
//! one. Arrays never pass for objects.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use relay_core::event::{PAYLOAD_DEPTH_MAX, nesting};
use relay_core::problem::FieldError;
use relay_core::signature::SigningSecret;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Strings in a list at most. What a field allows is less; this bounds what is read to find that out.
const STRINGS_MAX: usize = 1000;
/// Faults that are told at most.
const FAULTS_MAX: usize = 100;

/// Why a body is no object of fields.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not UTF-8 or not JSON.
    #[error("the body is not valid JSON: {0}")]
    Malformed(String),
    /// JSON, but no object.
    #[error("the body must be a JSON object")]
    NotAnObject,
    /// An object that has this field more than once.
    #[error("the field {0} stands there twice")]
    Repeated(&'static str),
}

/// The values of the fields `names` in the object `body`, in the order of `names`; `None` where a field is not
/// there.
pub fn read<'a, const N: usize>(
    body: &'a [u8],
    names: &'static [&'static str; N],
) -> Result<[Option<&'a RawValue>; N], BodyError> {
    let text = std::str::from_utf8(body).map_err(|e| BodyError::Malformed(format!("not UTF-8: {e}")))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let found = json.deserialize_map(ObjectVisitor { names }).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => BodyError::NotAnObject,
        _ => BodyError::Malformed(e.to_string()),
    });
    match found {
        // Something else may still be broken behind the value of the wrong type.
        Err(BodyError::NotAnObject) => match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => Err(BodyError::NotAnObject),
            Err(e) => Err(BodyError::Malformed(e.to_string())),
        },
        Ok(found) => {
            json.end().map_err(|e| BodyError::Malformed(e.to_string()))?;
            if found.is_deep {
                return Err(BodyError::Malformed(format!("nested deeper than {PAYLOAD_DEPTH_MAX}")));
            }
            found.repeated.map_or(Ok(found.values), |name| Err(BodyError::Repeated(name)))
        }
        Err(malformed) => Err(malformed),
    }
}

struct Found<'a, const N: usize> {
    values: [Option<&'a RawValue>; N],
    /// The first of `names` that was there twice.
    repeated: Option<&'static str>,
    /// Something that nobody asked for is deeper than a payload may be.
    is_deep: bool,
}

struct ObjectVisitor<const N: usize> {
    names: &'static [&'static str; N],
}

impl<'de, const N: usize> Visitor<'de> for ObjectVisitor<N> {
    type Value = Found<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Found { values: [None; N], repeated: None, is_deep: false };
        while let Some(known) = map.next_key_seed(NameIndex(self.names))? {
            let value = map.next_value::<&'de RawValue>()?;
            match known {
                Some(index) => {
                    if found.values[index].replace(value).is_some() {
                        found.repeated.get_or_insert(self.names[index]);
                    }
                }
                None => found.is_deep |= nesting(value.get().as_bytes()) > PAYLOAD_DEPTH_MAX,
            }
        }
        Ok(found)
    }
}

/// Reads a key as its index in the list of names, without keeping the text.
struct NameIndex(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for NameIndex {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameIndex {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|known| *known == name))
    }
}

/// Whether a value is the literal `null`.
pub fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// Collects what is wrong with the fields of one request.
#[derive(Debug, Default)]
pub struct Faults(pub Vec<FieldError>);

impl Faults {
    /// Notes that the body's field at `path` is wrong. After many faults, further ones say nothing new.
    pub fn add(&mut self, path: impl fmt::Display, message: impl fmt::Display) {
        if self.0.len() >= FAULTS_MAX {
            return;
        }
        self.0.push(FieldError { field: format!("body.{path}"), message: message.to_string() });
    }

    /// Notes that a header is wrong.
    pub fn add_header(&mut self, name: &str, message: impl fmt::Display) {
        self.0.push(FieldError { field: format!("header.{name}"), message: message.to_string() });
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `field` as `T`, noting `must` where it isn't one.
    fn typed<'a, T: Deserialize<'a>>(&mut self, field: &str, value: &'a RawValue, must: &str) -> Option<T> {
        let read = serde_json::from_str(value.get()).ok();
        if read.is_none() {
            self.add(field, must);
        }
        read
    }

    /// A string.
    pub fn string<'a>(&mut self, field: &str, value: &'a RawValue) -> Option<Cow<'a, str>> {
        self.string_or(field, value, "must be a string")
    }

    /// A string; what is wrong with anything else is said in these words.
    pub fn string_or<'a>(&mut self, field: &str, value: &'a RawValue, must: &str) -> Option<Cow<'a, str>> {
        self.typed::<Text<'a>>(field, value, must).map(|text| text.0)
    }

    /// A boolean.
    pub fn boolean(&mut self, field: &str, value: &RawValue) -> Option<bool> {
        self.typed(field, value, "must be true or false")
    }

    /// An integer within limits. A number written with a fraction or an exponent is none.
    pub fn integer(&mut self, field: &str, value: &RawValue, limits: &RangeInclusive<u32>) -> Option<u32> {
        let n = self.typed::<IntegerText>(field, value, "must be an integer")?;
        let within = n.0.and_then(|n| u32::try_from(n).ok()).filter(|n| limits.contains(n));
        if within.is_none() {
            self.add(field, format_args!("must be between {} and {}", limits.start(), limits.end()));
        }
        within
    }

    /// A number within limits.
    pub fn number(&mut self, field: &str, value: &RawValue, limits: &RangeInclusive<f64>) -> Option<f64> {
        let n = self.typed::<f64>(field, value, "must be a number")?;
        if !limits.contains(&n) {
            self.add(field, format_args!("must be between {:.1} and {:.1}", limits.start(), limits.end()));
            return None;
        }
        Some(n)
    }

    /// A signing secret. Its text doesn't come back in an error.
    pub fn secret(&mut self, field: &str, value: &RawValue) -> Option<SigningSecret> {
        let text = self.string(field, value)?.into_owned();
        SigningSecret::parse(text).map_err(|why| self.add(field, why)).ok()
    }

    /// An id.
    pub fn id<T: FromStr>(&mut self, field: &str, value: &RawValue) -> Option<T> {
        let text = self.string(field, value)?;
        let id = text.parse().ok();
        if id.is_none() {
            self.add(field, "must be a UUID");
        }
        id
    }

    /// A list; its items are still unread.
    pub fn list<'a>(&mut self, field: &str, value: &'a RawValue) -> Option<Vec<&'a RawValue>> {
        self.typed(field, value, "must be a list")
    }

    /// A list of strings.
    pub fn strings(&mut self, field: &str, value: &RawValue) -> Option<Vec<String>> {
        let items = self.list(field, value)?;
        if items.len() > STRINGS_MAX {
            self.add(field, format_args!("must have at most {STRINGS_MAX} items"));
            return None;
        }
        let read = |(i, item): (usize, &&RawValue)| self.string(&format!("{field}.{i}"), item).map(Cow::into_owned);
        let read: Vec<Option<String>> = items.iter().enumerate().map(read).collect();
        read.into_iter().collect()
    }

    /// An object whose members `read` reads; it is given the path of each.
    pub fn map<T>(
        &mut self,
        field: &str,
        value: &RawValue,
        read: impl Fn(&mut Self, &str, &RawValue) -> Option<T>,
    ) -> Option<BTreeMap<String, T>> {
        let Pairs(items) = self.typed(field, value, "must be an object")?;
        if items.len() > STRINGS_MAX {
            self.add(field, format_args!("must have at most {STRINGS_MAX} items"));
            return None;
        }
        let (mut map, mut names) = (BTreeMap::new(), BTreeSet::new());
        let mut is_good = true;
        for (name, item) in items {
            let path = format!("{field}.{name}");
            let item = read(self, &path, item);
            if !names.insert(name.clone()) {
                self.add(path, "stands there twice");
                is_good = false;
            }
            is_good &= item.is_some();
            map.extend(item.map(|item| (name, item)));
        }
        is_good.then_some(map)
    }
}

/// A string, borrowed from the request where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The members of an object, in their order.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor)
    }
}

/// An integer of any size: `None` when it doesn't fit 64 bits.
struct IntegerText(Option<i64>);

impl<'de> Deserialize<'de> for IntegerText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?.get();
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(serde::de::Error::custom("not an integer"));
        }
        Ok(Self(text.parse().ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str; 2] = &["a", "payload"];

    fn texts(body: &str) -> Result<[Option<&str>; 2], BodyError> {
        read(body.as_bytes(), NAMES).map(|values| values.map(|v| v.map(RawValue::get)))
    }

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    fn strings(faults: &mut Faults, text: &str) -> Option<BTreeMap<String, String>> {
        faults.map("headers", raw(text), |faults, path, item| faults.string(path, item).map(Cow::into_owned))
    }

    #[test]
    fn values_are_found_and_keep_their_bytes() {
        assert_eq!(texts("{}"), Ok([None, None]));
        assert_eq!(
            texts(r#" {"x":[{}], "payload" : { "b":1,  "a":1e400 } , "a":null} "#),
            Ok([Some("null"), Some(r#"{ "b":1,  "a":1e400 }"#)])
        );
        assert_eq!(texts(r#"{"x":1,"x":2,"a":{"b":1,"b":2}}"#), Ok([Some(r#"{"b":1,"b":2}"#), None]));
        assert_eq!(texts(r#"{"\u0061":1}"#), Ok([Some("1"), None]));
    }

    #[test]
    fn no_field_stands_there_twice() {
        for twice in [r#"{"a":1,"a":2}"#, r#"{"a":1,"\u0061":1}"#, r#"{"a":null,"x":1,"a":null,"a":7}"#] {
            assert_eq!(texts(twice), Err(BodyError::Repeated("a")), "{twice}");
        }
        assert!(matches!(texts(r#"{"a":1,"a":2"#), Err(BodyError::Malformed(_))), "broken JSON is said first");
        let mut faults = Faults::default();
        assert_eq!(strings(&mut faults, r#"{"X-A":"1","X-B":"2","X-A":"3"}"#), None);
        assert_eq!(faults.0.len(), 1);
        assert_eq!(faults.0[0].field, "body.headers.X-A");
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = |n: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(n), "]".repeat(n));
        assert!(texts(&deep(PAYLOAD_DEPTH_MAX)).is_ok());
        for n in [PAYLOAD_DEPTH_MAX + 1, 100_000] {
            assert!(matches!(texts(&deep(n)), Err(BodyError::Malformed(_))), "{n}");
        }
        let mut faults = Faults::default();
        let list = |item: &str, n: usize| format!("[{}{item}]", format!("{item},").repeat(n - 1));
        assert_eq!(faults.strings("l", raw(&list("\"a\"", STRINGS_MAX))).unwrap().len(), STRINGS_MAX);
        assert!(faults.is_empty());
        assert_eq!(faults.strings("l", raw(&list("\"a\"", 10_000))), None);
        assert_eq!((faults.0.len(), faults.0[0].field.as_str()), (1, "body.l"));
        assert_eq!(faults.strings("l", raw(&list("7", STRINGS_MAX))), None);
        assert_eq!(faults.0.len(), FAULTS_MAX);
        assert_eq!(faults.strings("l", raw("[7]")), None, "what isn't told is wrong all the same");
    }

    #[test]
    fn malformed_and_wrong_are_told_apart() {
        for wrong in ["[]", "[1,2]", "null", "7", "\"a\"", " true "] {
            assert_eq!(texts(wrong), Err(BodyError::NotAnObject), "{wrong}");
        }
        for bad in ["", "{", "[", r#"{"a"}"#, r#"{"a":1,}"#, "{} {}", "{}x", "nul", r#"{"a":NaN}"#, "[1,", "7 7"] {
            assert!(matches!(texts(bad), Err(BodyError::Malformed(_))), "{bad}");
        }
        assert!(matches!(read(b"{\"a\":\"\xff\"}", NAMES), Err(BodyError::Malformed(_))));
    }

    #[test]
    fn types_are_strict() {
        let mut faults = Faults::default();
        assert_eq!(faults.integer("n", raw("7"), &(1..=20)), Some(7));
        assert_eq!(faults.number("n", raw("2"), &(1.0..=10.0)), Some(2.0));
        assert_eq!(faults.boolean("n", raw("true")), Some(true));
        assert_eq!(faults.string("n", raw(r#""a\u0062""#)).as_deref(), Some("ab"));
        assert_eq!(faults.strings("n", raw(r#"["a","b"]"#)), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert!(faults.is_empty());
        for bad in ["\"7\"", "7.0", "7e0", "true", "null", "[]", "7.5"] {
            assert_eq!(faults.integer("n", raw(bad), &(1..=20)), None, "{bad}");
            assert_eq!(faults.0.pop().unwrap().message, "must be an integer");
        }
        for bad in ["0", "21", "-1", "99999999999999999999999"] {
            assert_eq!(faults.integer("n", raw(bad), &(1..=20)), None, "{bad}");
            assert_eq!(faults.0.pop().unwrap().message, "must be between 1 and 20");
        }
        for bad in ["\"2\"", "true", "1e400"] {
            assert_eq!(faults.number("n", raw(bad), &(1.0..=10.0)), None, "{bad}");
        }
        assert_eq!(faults.number("n", raw("10.01"), &(1.0..=10.0)), None);
        assert_eq!(faults.string("n", raw(r#""\ud800""#)), None, "a lone surrogate is no text");
    }

    #[test]
    fn errors_name_the_item() {
        let mut faults = Faults::default();
        assert_eq!(faults.strings("filter", raw(r#"["a",7]"#)), None);
        assert_eq!(strings(&mut faults, r#"{"X-A":"1","X-B":2}"#), None);
        let paths: Vec<_> = faults.0.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(paths, ["body.filter.1", "body.headers.X-B"]);
    }
}
