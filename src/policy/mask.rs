//! Masks: the closed set of ways to show less of a value than all of it.
//!
//! They stand in one total order, weakest (shows most) first, so that grants add up the same way whatever their order:
//! clear < [`Mask::Phone`] < [`Mask::IdNumber`] < [`Mask::CertNo`] < [`Mask::Address`] < [`Mask::BirthDate`] <
//! [`Mask::BankCard`] < [`Mask::NameZh`] < [`Mask::Pseudonym`] < [`Mask::Present`]. A pseudonym shows no character of a
//! value, only where the same one stands again, so it is stronger than whatever shows a part; `present` does not show even
//! that. No mask is a plain hash: identity numbers can be enumerated.

use super::pseudonym::Pseudonyms;

/// One way to show less of a value. The order of the variants is the order of strength.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mask {
    /// `phone`: the first 3 and last 4 characters.
    Phone,
    /// `id_number`: the first 3 and last 4 characters.
    IdNumber,
    /// `cert_no`: the first 2 and last 4 characters.
    CertNo,
    /// `address`: up to and with the first 镇, 乡 or 街道; where there is none, or a road or house number stands before
    /// it, `present`.
    Address,
    /// `birth_date`: the year.
    BirthDate,
    /// `bank_card`: the last 4 characters.
    BankCard,
    /// `name_zh`: the first character.
    NameZh,
    /// `pseudonym`: 26 characters that stand for the value, for this consumer and matter alone.
    Pseudonym,
    /// `present`: the value is omitted and known to exist. `amount` and `image` in a file mean this one.
    Present,
}

/// What a hidden character becomes.
const HIDDEN: char = '*';

/// The smallest units that an address may be cut after.
const TOWNSHIPS: [&str; 3] = ["镇", "乡", "街道"];

/// Signs that an address is already below its township.
const BELOW_TOWNSHIP: [char; 7] = ['路', '号', '巷', '弄', '栋', '幢', '室'];

impl Mask {
    /// Every mask, weakest first.
    pub const ALL: [Self; 9] = [
        Self::Phone,
        Self::IdNumber,
        Self::CertNo,
        Self::Address,
        Self::BirthDate,
        Self::BankCard,
        Self::NameZh,
        Self::Pseudonym,
        Self::Present,
    ];

    /// Names that a file may use beside those of [`Mask::ALL`], all for [`Mask::Present`].
    pub(super) const ALIASES: [&'static str; 2] = ["amount", "image"];

    /// The mask of this name in a grant file or in the catalog.
    pub fn named(name: &str) -> Option<Self> {
        if Self::ALIASES.contains(&name) {
            return Some(Self::Present);
        }
        Self::ALL.into_iter().find(|mask| mask.name() == name)
    }

    /// Its name in files and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Phone => "phone",
            Self::IdNumber => "id_number",
            Self::CertNo => "cert_no",
            Self::Address => "address",
            Self::BirthDate => "birth_date",
            Self::BankCard => "bank_card",
            Self::NameZh => "name_zh",
            Self::Pseudonym => "pseudonym",
            Self::Present => "present",
        }
    }

    /// The masked form of `value`. `None` means that the value must be omitted, as [`Mask::Present`] says: the mask is
    /// that one, or it would show the whole value, or the value has not the form that the mask cuts, or there is no key to
    /// make a pseudonym with.
    ///
    /// The result is never longer in bytes than `value`, except for a pseudonym, which has 26.
    pub(super) fn apply(self, value: &str, pseudonyms: Option<&Pseudonyms>) -> Option<String> {
        match self {
            Self::Phone | Self::IdNumber => keep(value, 3, 4),
            Self::CertNo => keep(value, 2, 4),
            Self::BankCard => keep(value, 0, 4),
            Self::NameZh => keep(value, 1, 0),
            Self::Address => township(value),
            Self::BirthDate => year(value),
            Self::Pseudonym => pseudonyms?.of(value),
            Self::Present => None,
        }
    }
}

/// The first `head` and last `tail` characters, the others hidden.
fn keep(value: &str, head: usize, tail: usize) -> Option<String> {
    let length = value.chars().count();
    let hidden = head..length.saturating_sub(tail);
    (!hidden.is_empty())
        .then(|| value.chars().enumerate().map(|(at, char)| if hidden.contains(&at) { HIDDEN } else { char }).collect())
}

fn township(address: &str) -> Option<String> {
    let end = TOWNSHIPS.iter().filter_map(|unit| Some(address.find(unit)? + unit.len())).min()?;
    let (shown, rest) = address.split_at_checked(end)?;
    let too_fine = shown.contains(BELOW_TOWNSHIP) || shown.contains(char::is_numeric);
    (!rest.is_empty() && !too_fine).then(|| shown.to_owned())
}

fn year(date: &str) -> Option<String> {
    let (year, rest) = date.split_at_checked(4)?;
    (year.bytes().all(|byte| byte.is_ascii_digit()) && rest.starts_with('-')).then(|| year.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::pseudonym::{LENGTH, test_key};
    use super::*;

    fn masked(mask: Mask, value: &str) -> Option<String> {
        mask.apply(value, Some(&pseudonyms()))
    }

    fn pseudonyms() -> Pseudonyms {
        test_key().of(&"GA".parse().unwrap(), "newborn_birth")
    }

    #[test]
    fn chinese_values_keep_what_their_mask_says() {
        let shown = |mask: Mask, value: &str| masked(mask, value).unwrap();
        assert_eq!(shown(Mask::NameZh, "张三"), "张*");
        assert_eq!(shown(Mask::NameZh, "欧阳娜娜"), "欧***");
        assert_eq!(shown(Mask::NameZh, "𠮷田"), "𠮷*");
        assert_eq!(shown(Mask::IdNumber, "11010519491231002X"), "110***********002X");
        assert_eq!(shown(Mask::Phone, "13800000000"), "138****0000");
        assert_eq!(shown(Mask::CertNo, "粤A12345678"), "粤A****5678");
        assert_eq!(shown(Mask::BankCard, "6222000000001234"), "************1234");
        assert_eq!(shown(Mask::BirthDate, "2026-01-02"), "2026");
        assert_eq!(shown(Mask::BirthDate, "2026-01-02T03:04"), "2026");
        assert_eq!(shown(Mask::Address, "某省某市沙坪街道人民路1号"), "某省某市沙坪街道");
        assert_eq!(shown(Mask::Address, "某省某市龙口镇三乡村2号"), "某省某市龙口镇");
    }

    #[test]
    fn what_a_mask_cannot_cut_is_omitted() {
        for (mask, value) in [
            (Mask::NameZh, "张"),
            (Mask::NameZh, ""),
            (Mask::IdNumber, "1234567"),
            (Mask::BankCard, "1234"),
            (Mask::CertNo, "粤12345"),
            (Mask::Address, "某省某市人民路1号"),
            (Mask::Address, "某省某市人民路12号古镇花园3栋"),
            (Mask::Address, "某市沙坪街道"),
            (Mask::BirthDate, "20260102"),
            (Mask::BirthDate, "二〇二六年"),
            (Mask::Pseudonym, ""),
            (Mask::Present, "anything"),
        ] {
            assert_eq!(masked(mask, value), None, "{mask:?} {value}");
        }
    }

    #[test]
    fn names_are_unique_and_in_order_of_strength() {
        assert!(Mask::ALL.is_sorted_by(|weaker, stronger| weaker < stronger));
        assert_eq!(Mask::Pseudonym.apply("张三", None), None, "without a key there is nothing to show");
        for mask in Mask::ALL {
            assert_eq!(Mask::named(mask.name()), Some(mask));
        }
        assert_eq!(Mask::named("amount"), Some(Mask::Present));
        assert_eq!(Mask::named("clear"), None);
    }

    proptest! {
        #[test]
        fn a_mask_never_shows_everything_and_only_a_pseudonym_grows(value in "\\PC{0,40}") {
            for mask in Mask::ALL {
                if let Some(shown) = masked(mask, &value) {
                    let most = if mask == Mask::Pseudonym { LENGTH } else { value.len() };
                    prop_assert!(shown.len() <= most);
                    prop_assert!(shown != value || value.contains(HIDDEN));
                }
            }
        }
    }
}
