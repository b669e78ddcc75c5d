//! Labels, and the selectors that choose by them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::check::{Fault, Faults, Invalid};

/// The labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Chooses objects whose labels meet every requirement; without any, all objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Each once, in order of the keys: selectors that ask the same are equal.
    requirements: Vec<Requirement>,
}

/// What a selector asks of one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// The label is there and has one of these values.
    In(String, BTreeSet<String>),
    /// The label is not there, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    DoesNotExist(String),
}

impl Selector {
    /// The selector that chooses everything.
    pub const EVERYTHING: Self = Self { requirements: Vec::new() };

    /// Whether an object with these labels is chosen.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.is_met_by(labels))
    }

    /// Whether it chooses everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// A label that every chosen object has, and the values that it may have there, where the selector asks for any: of
    /// several the one with the fewest values.
    pub fn narrowest(&self) -> Option<(&str, &BTreeSet<String>)> {
        let listed = self.requirements.iter().filter_map(|requirement| match requirement {
            Requirement::In(key, values) => Some((key.as_str(), values)),
            _ => None,
        });
        listed.min_by_key(|(_, values)| values.len())
    }

    /// The value that it asks one label to have, if that is all that it asks.
    pub(super) fn sole_value(&self, label: &str) -> Option<&str> {
        match &self.requirements[..] {
            [Requirement::In(key, values)] if key == label && values.len() == 1 => {
                values.first().map(String::as_str)
            }
            _ => None,
        }
    }

    pub(super) fn parse(field: &str, selector: &LabelSelector) -> Result<Self, Invalid> {
        let mut faults = Faults::default();
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            let field = format!("{field}.matchLabels");
            faults.take(label_key(&field, key));
            faults.take(label_value(&field, value));
            requirements.push(Requirement::In(key.clone(), BTreeSet::from([value.clone()])));
        }
        for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let field = format!("{field}.matchExpressions[{i}]");
            let key = expression.key.clone();
            faults.take(label_key(&format!("{field}.key"), &key));
            let values: BTreeSet<_> = expression.values.iter().flatten().cloned().collect();
            for value in &values {
                faults.take(label_value(&format!("{field}.values"), value));
            }
            let operator = expression.operator.as_str();
            match (operator, values.is_empty()) {
                ("In", false) => requirements.push(Requirement::In(key, values)),
                ("NotIn", false) => requirements.push(Requirement::NotIn(key, values)),
                ("Exists", true) => requirements.push(Requirement::Exists(key)),
                ("DoesNotExist", true) => requirements.push(Requirement::DoesNotExist(key)),
                ("In" | "NotIn", true) => {
                    faults.add(format!("{field}.values"), format!("must not be empty with {operator}"));
                }
                ("Exists" | "DoesNotExist", false) => {
                    faults.add(format!("{field}.values"), format!("must be empty with {operator}"));
                }
                _ => faults.add(
                    format!("{field}.operator"),
                    format!("\"{operator}\" is none of In, NotIn, Exists and DoesNotExist"),
                ),
            }
        }
        requirements.sort_by(|a, b| (a.key(), a).cmp(&(b.key(), b)));
        requirements.dedup();
        faults.finish(Self { requirements })
    }
}

/// As `kubectl --selector` has it. Keys and values hold nothing that could be taken for what stands between them.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl Requirement {
    fn key(&self) -> &str {
        match self {
            Self::In(key, _) | Self::NotIn(key, _) | Self::Exists(key) | Self::DoesNotExist(key) => key,
        }
    }

    fn is_met_by(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values, one, many) = match self {
            Self::Exists(key) => return f.write_str(key),
            Self::DoesNotExist(key) => return write!(f, "!{key}"),
            Self::In(key, values) => (key, values, "=", "in"),
            Self::NotIn(key, values) => (key, values, "!=", "notin"),
        };
        let mut listed = values.iter();
        let first = listed.next().map_or("", String::as_str);
        if values.len() == 1 {
            return write!(f, "{key}{one}{first}");
        }
        write!(f, "{key} {many} ({first}")?;
        for value in listed {
            write!(f, ",{value}")?;
        }
        f.write_str(")")
    }
}

/// A label's key: an optional DNS prefix and a name of at most 63 characters.
fn label_key(field: &str, key: &str) -> Result<(), Fault> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let valid_prefix = prefix.is_none_or(|prefix| {
        !prefix.is_empty()
            && prefix.len() <= 253
            && prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
    });
    if valid_prefix && !name.is_empty() && is_label_text(name) {
        Ok(())
    } else {
        Err(Fault::new(field, format!("\"{key}\" is not a valid label key")))
    }
}

fn label_value(field: &str, value: &str) -> Result<(), Fault> {
    if is_label_text(value) {
        Ok(())
    } else {
        Err(Fault::new(field, format!("\"{value}\" is not a valid label value")))
    }
}

fn is_label_text(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        let requirement = LabelSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: Some(values.iter().map(|&value| value.into()).collect()),
        };
        LabelSelector { match_expressions: Some(vec![requirement]), match_labels: None }
    }

    #[test]
    fn faults_name_the_field() {
        let reason = |selector| {
            let Invalid(faults) = Selector::parse("spec.podSelector", &selector).unwrap_err();
            format!("{}: {}", faults[0].field, faults[0].reason)
        };
        assert_eq!(
            reason(expression("app", "Is", &["a"])),
            "spec.podSelector.matchExpressions[0].operator: \"Is\" is none of In, NotIn, Exists and DoesNotExist"
        );
        assert_eq!(
            reason(expression("app", "In", &[])),
            "spec.podSelector.matchExpressions[0].values: must not be empty with In"
        );
        assert_eq!(
            reason(expression("a b", "Exists", &[])),
            "spec.podSelector.matchExpressions[0].key: \"a b\" is not a valid label key"
        );
    }

    /// The words of the Kubernetes documentation, one by one, over the type that the API has.
    fn naive(selector: &LabelSelector, labels: &Labels) -> bool {
        for (key, value) in selector.match_labels.iter().flatten() {
            if labels.get(key) != Some(value) {
                return false;
            }
        }
        for requirement in selector.match_expressions.iter().flatten() {
            let value = labels.get(&requirement.key);
            let listed = |value: &String| requirement.values.iter().flatten().any(|v| v == value);
            let met = match requirement.operator.as_str() {
                "In" => value.is_some() && listed(value.unwrap()),
                "NotIn" => value.is_none() || !listed(value.unwrap()),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => unreachable!(),
            };
            if !met {
                return false;
            }
        }
        true
    }

    fn labels() -> impl Strategy<Value = Labels> {
        collection::btree_map("[abc]", "[xyz]", 0..4)
    }

    fn requirement() -> impl Strategy<Value = LabelSelectorRequirement> {
        let operator = prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
        ("[abc]", operator, collection::vec("[xyz]", 1..3)).prop_map(|(key, operator, values)| {
            let values = operator.ends_with("In").then_some(values);
            LabelSelectorRequirement { key, operator: operator.into(), values }
        })
    }

    proptest! {
        #[test]
        fn matches_as_the_naive_model(
            match_labels in labels(),
            expressions in collection::vec(requirement(), 0..3),
            object in labels(),
        ) {
            let selector = LabelSelector { match_labels: Some(match_labels), match_expressions: Some(expressions) };
            let parsed = Selector::parse("spec.podSelector", &selector).unwrap();
            prop_assert_eq!(parsed.matches(&object), naive(&selector, &object));
        }
    }
}
