//! Numbers that are well formed and belong to nobody: valid check digits over a division code that GB/T 2260 cannot have.

use time::Date;

/// The impossible division: no province begins with 99.
pub const DIVISION: &str = "990784";

/// The characters of GB 32100 in the order of their values 0 to 30.
const USCC_ALPHABET: &str = "0123456789ABCDEFGHJKLMNPQRTUWXY";

/// Weights of the first 17 digits, GB 11643.
const ID_WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];

/// Weights of the eight characters of an organisation code, GB 11714.
const ORGANISATION_WEIGHTS: [u32; 8] = [3, 7, 9, 10, 5, 8, 4, 2];

/// A citizen's identity number of the impossible division. `sequence` (at most 999) is odd for men, even for women.
pub fn id_number(birth_date: Date, sequence: u16) -> String {
    let (year, month, day) = birth_date.to_calendar_date();
    let body = format!("{DIVISION}{year:04}{:02}{day:02}{:03}", u8::from(month), sequence % 1000);
    let check = id_check(&body);
    format!("{body}{check}")
}

/// The check character of GB 11643 over the first 17 digits.
pub fn id_check(body: &str) -> char {
    let sum: u32 = body.chars().zip(ID_WEIGHTS).map(|(c, weight)| c.to_digit(10).unwrap_or(0) * weight).sum();
    nth("10X98765432", sum % 11)
}

/// A unified social credit code of the impossible division: registration authority 9 (market regulation), the category
/// (`1` enterprise, `2` individual business), the division, and the organisation code of the eight characters given.
pub fn uscc(category: char, organisation: &str) -> String {
    let body = format!("9{category}{DIVISION}{organisation}{}", organisation_check(organisation));
    let check = uscc_check(&body);
    format!("{body}{check}")
}

/// The check character of GB 32100 over the first 17 characters; the weights are the powers of 3 modulo 31.
pub fn uscc_check(body: &str) -> char {
    let (sum, _) = body.chars().fold((0, 1), |(sum, weight), c| (sum + value(c) * weight, weight * 3 % 31));
    nth(USCC_ALPHABET, (31 - sum % 31) % 31)
}

/// The check character of GB 11714 over eight characters; there letters count 10 to 35, without gaps.
fn organisation_check(organisation: &str) -> char {
    let value = |c: char| c.to_digit(36).unwrap_or(0);
    let sum: u32 = organisation.chars().zip(ORGANISATION_WEIGHTS).map(|(c, weight)| value(c) * weight).sum();
    nth("0X987654321", sum % 11)
}

/// The character of the credit code's alphabet for a value; values wrap at 31.
pub(super) fn uscc_char(value: u32) -> char {
    nth(USCC_ALPHABET, value % 31)
}

fn value(c: char) -> u32 {
    USCC_ALPHABET.chars().zip(0..).find_map(|(each, value)| (each == c).then_some(value)).unwrap_or(0)
}

/// The character at a position of a table; positions are reduced by the caller, so `0` never stands in for one.
fn nth(table: &str, index: u32) -> char {
    table.chars().zip(0..).find_map(|(c, at)| (at == index).then_some(c)).unwrap_or('0')
}

#[cfg(test)]
mod tests {
    use time::macros::date;

    use super::*;

    #[test]
    fn check_characters_agree_with_published_codes() {
        // The example of GB 11643, and codes of ministries and of GB 32100.
        assert_eq!(id_check("11010519491231002"), 'X');
        for code in ["91350100M000100Y43", "11100000000013127D", "11100000MB0143028R", "11100000000014445H"] {
            let (body, check) = code.split_at(17);
            assert_eq!(uscc_check(body).to_string(), check);
            let (organisation, check) = body.split_at(16);
            let organisation = organisation.get(8..).unwrap();
            assert_eq!(organisation_check(organisation).to_string(), check, "{code}");
        }
    }

    #[test]
    fn numbers_have_eighteen_characters_of_the_impossible_division() {
        let id = id_number(date!(2020 - 02 - 29), 7);
        assert_eq!(id.len(), 18);
        assert!(id.starts_with("99078420200229007"));
        let code = uscc('1', "MA0000A7");
        assert_eq!(code.len(), 18);
        assert!(code.starts_with("91990784MA0000A7"));
    }
}
