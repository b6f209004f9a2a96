//! Checks of form: identity numbers, credit codes, dates and the like. Pure; they know nothing of a register, so a
//! number that passes may still belong to nobody.
//!
//! Digits are ASCII digits: full-width and other Unicode digits are refused, since two spellings of one number would
//! escape comparison, limits and the log's subject index.

use time::{Date, Month};

use super::ValueKind;

/// What is wrong with a value. Neither form repeats the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckError {
    /// Too short or too long.
    #[error("wrong length")]
    Length,
    /// A character that does not belong there.
    #[error("a character that does not belong there")]
    Character,
    /// The check digit does not fit the rest.
    #[error("the check digit does not fit")]
    CheckDigit,
    /// No such day, month or time, or one out of bounds.
    #[error("no such date or time")]
    Calendar,
}

impl CheckError {
    /// The same text as `Display`, as a constant.
    pub const fn rule(self) -> &'static str {
        match self {
            Self::Length => "wrong length",
            Self::Character => "a character that does not belong there",
            Self::CheckDigit => "the check digit does not fit",
            Self::Calendar => "no such date or time",
        }
    }
}

/// The longest value of any kind, in bytes of UTF-8.
pub const MAX_VALUE_BYTES: usize = 256;

/// The value in the form in which it is compared: as given, but a check digit `x` of an identity number is upper case.
/// Kinds without a form of their own are text of one line: 1 to [`MAX_VALUE_BYTES`] bytes, no control characters.
pub fn normalised(kind: ValueKind, value: &str) -> Result<String, CheckError> {
    text(value)?;
    match kind {
        ValueKind::IdNumber => return upper_id(value),
        ValueKind::PersonOrEntityNo => {
            // Whatever is no credit code is judged as an identity number, unless it cannot be one by its characters.
            return match uscc(value) {
                Ok(()) => Ok(value.into()),
                Err(_) if value.bytes().take(17).all(|b| b.is_ascii_digit()) => upper_id(value),
                Err(error) => Err(error),
            };
        }
        ValueKind::Uscc => uscc(value)?,
        ValueKind::Division => division(value)?,
        ValueKind::Date => {
            date(value)?;
        }
        ValueKind::DateTime => datetime(value)?,
        ValueKind::Month => month(value)?,
        ValueKind::Decimal => decimal(value)?,
        ValueKind::Phone => phone(value)?,
        ValueKind::Text
        | ValueKind::PersonName
        | ValueKind::CertificateNo
        | ValueKind::Address
        | ValueKind::Code
        | ValueKind::BankCard
        | ValueKind::Image => {}
    }
    Ok(value.into())
}

/// Text of one line: 1 to [`MAX_VALUE_BYTES`] bytes, no control characters.
pub fn text(value: &str) -> Result<(), CheckError> {
    if value.is_empty() || value.len() > MAX_VALUE_BYTES {
        return Err(CheckError::Length);
    }
    if value.chars().any(char::is_control) { Err(CheckError::Character) } else { Ok(()) }
}

/// Citizen's identity number, GB 11643-1999: 17 digits and a check digit (`0` to `9`, `X` or `x`), with a birth date that
/// exists. The division code is not looked up: old ones stay in use for life.
pub fn id_number(value: &str) -> Result<(), CheckError> {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    const CHECK: &[u8; 11] = b"10X98765432";

    let bytes: &[u8; 18] = value.as_bytes().try_into().map_err(|_| length_or_character(value))?;
    let (last, body) = bytes.split_last().ok_or(CheckError::Length)?;
    if !body.iter().all(u8::is_ascii_digit) || !(last.is_ascii_digit() || matches!(last, b'X' | b'x')) {
        return Err(CheckError::Character);
    }
    let sum: u32 = body.iter().zip(WEIGHTS).map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    if CHECK.get(sum as usize % 11) != Some(&last.to_ascii_uppercase()) {
        return Err(CheckError::CheckDigit);
    }
    birth_date(value).map(|_| ()).ok_or(CheckError::Calendar)
}

/// The birth date within a valid identity number; `None` if the number is not valid.
pub fn birth_date_of(id: &str) -> Option<Date> {
    id_number(id).ok()?;
    birth_date(id)
}

/// Unified social credit code, GB 32100-2015: 18 characters of its alphabet, the last one a check character. Capitals only.
pub fn uscc(value: &str) -> Result<(), CheckError> {
    // Digits and capitals without I, O, S, V and Z.
    const ALPHABET: &[u8; 31] = b"0123456789ABCDEFGHJKLMNPQRTUWXY";

    if value.len() != 18 {
        return Err(length_or_character(value));
    }
    let mut sum = 0;
    let mut weight = 1;
    let mut check = 0;
    for (place, byte) in value.bytes().enumerate() {
        let digit = ALPHABET.iter().position(|known| *known == byte).ok_or(CheckError::Character)?;
        if place == 17 {
            check = digit;
        } else {
            sum += digit * weight;
            weight = weight * 3 % 31;
        }
    }
    if (31 - sum % 31) % 31 == check { Ok(()) } else { Err(CheckError::CheckDigit) }
}

/// Calendar date `YYYY-MM-DD` of the years 1850 to 9999 (terms without an end are written so).
pub fn date(value: &str) -> Result<Date, CheckError> {
    let [year, month, day] = numbers(value, &[(4, '-'), (2, '-'), (2, ' ')])?;
    calendar_date(year, month, day, 9999).ok_or(CheckError::Calendar)
}

/// Date and time `YYYY-MM-DDTHH:MM`.
pub fn datetime(value: &str) -> Result<(), CheckError> {
    let [year, month, day, hour, minute] = numbers(value, &[(4, '-'), (2, '-'), (2, 'T'), (2, ':'), (2, ' ')])?;
    let real = calendar_date(year, month, day, 9999).is_some() && hour < 24 && minute < 60;
    if real { Ok(()) } else { Err(CheckError::Calendar) }
}

/// Year and month `YYYY-MM`.
pub fn month(value: &str) -> Result<(), CheckError> {
    let [year, month] = numbers(value, &[(4, '-'), (2, ' ')])?;
    if calendar_date(year, month, 1, 9999).is_some() { Ok(()) } else { Err(CheckError::Calendar) }
}

/// Decimal number in plain notation: at most 18 digits before the point and 6 behind it, no leading zeros, no `+`.
pub fn decimal(value: &str) -> Result<(), CheckError> {
    let unsigned = value.strip_prefix('-').unwrap_or(value);
    let (whole, fraction) = unsigned.split_once('.').map_or((unsigned, None), |(w, f)| (w, Some(f)));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !fraction.is_none_or(digits) {
        return Err(CheckError::Character);
    }
    if !(1..=18).contains(&whole.len()) || !fraction.is_none_or(|part| (1..=6).contains(&part.len())) {
        return Err(CheckError::Length);
    }
    if whole.len() > 1 && whole.starts_with('0') { Err(CheckError::Character) } else { Ok(()) }
}

/// Division code, GB/T 2260: 6 digits, the first not `0`. Not looked up: divisions come and go.
pub fn division(value: &str) -> Result<(), CheckError> {
    if value.len() != 6 {
        return Err(length_or_character(value));
    }
    let form = value.bytes().all(|b| b.is_ascii_digit()) && !value.starts_with('0');
    if form { Ok(()) } else { Err(CheckError::Character) }
}

/// Telephone number: 5 to 20 digits; hyphens between digits and one leading `+` are allowed.
pub fn phone(value: &str) -> Result<(), CheckError> {
    let number = value.strip_prefix('+').unwrap_or(value);
    let groups_form = number.split('-').all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit()));
    if !groups_form {
        return Err(if number.is_empty() { CheckError::Length } else { CheckError::Character });
    }
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    if (5..=20).contains(&digits) { Ok(()) } else { Err(CheckError::Length) }
}

fn upper_id(value: &str) -> Result<String, CheckError> {
    id_number(value)?;
    Ok(value.to_ascii_uppercase())
}

/// Full-width text is often of a wrong length in bytes; what is wrong with it are its characters.
fn length_or_character(value: &str) -> CheckError {
    if value.is_ascii() { CheckError::Length } else { CheckError::Character }
}

/// Digits 7 to 14. People now living, and those in registers, were born in these years.
fn birth_date(id: &str) -> Option<Date> {
    let part = |range| id.get(range).and_then(|digits: &str| digits.parse().ok());
    calendar_date(part(6..10)?, part(10..12)?, part(12..14)?, 2099)
}

fn calendar_date(year: u32, month: u32, day: u32, last_year: u32) -> Option<Date> {
    if !(1850..=last_year).contains(&year) {
        return None;
    }
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    Date::from_calendar_date(i32::try_from(year).ok()?, month, u8::try_from(day).ok()?).ok()
}

/// Groups of digits of the given widths, each followed by its separator, the last by the end.
fn numbers<const N: usize>(value: &str, form: &[(usize, char); N]) -> Result<[u32; N], CheckError> {
    let mut found = [0; N];
    let mut rest = value;
    for (place, (slot, (width, separator))) in found.iter_mut().zip(form).enumerate() {
        let (digits, after) = rest.split_at_checked(*width).ok_or_else(|| length_or_character(value))?;
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(CheckError::Character);
        }
        *slot = digits.parse().map_err(|_| CheckError::Character)?;
        rest = if place + 1 == N {
            after
        } else {
            let wrong = if after.is_empty() { CheckError::Length } else { CheckError::Character };
            after.strip_prefix(*separator).ok_or(wrong)?
        };
    }
    if rest.is_empty() { Ok(found) } else { Err(CheckError::Length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_numbers() {
        // The vector of GB 11643 itself.
        assert_eq!(id_number("11010519491231002X"), Ok(()));
        assert_eq!(id_number("11010519491231002x"), Ok(()));
        for (bad, why) in [
            ("", CheckError::Length),
            ("11010519491231002", CheckError::Length),
            ("110105194912310021X", CheckError::Length),
            ("110105491231002", CheckError::Length),
            ("110105194912310020", CheckError::CheckDigit),
            ("11010519491231003X", CheckError::CheckDigit),
            ("1101051949123100XX", CheckError::Character),
            ("11010519491231002Y", CheckError::Character),
            ("11010519491231-02X", CheckError::Character),
            ("１１０１０５１９４９１２３１００２X", CheckError::Character),
            (" 1010519491231002X", CheckError::Character),
        ] {
            assert_eq!(id_number(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn an_identity_number_needs_a_real_birth_date() {
        assert_eq!(birth_date_of("11010519491231002X").unwrap().to_string(), "1949-12-31");
        for day in ["20230231", "20231301", "20230001", "20230100", "18491231", "21000101", "20230229"] {
            let number = with_check_digit(&format!("999999{day}001"));
            assert_eq!(id_number(&number), Err(CheckError::Calendar), "{number}");
            assert_eq!(birth_date_of(&number), None);
        }
        for day in ["20240229", "18500101", "20991231"] {
            assert_eq!(id_number(&with_check_digit(&format!("999999{day}001"))), Ok(()), "{day}");
        }
    }

    #[test]
    fn every_single_changed_digit_of_an_identity_number_is_noticed() {
        let good = "11010519491231002X";
        for place in 0..17 {
            for digit in b'0'..=b'9' {
                let mut changed = good.as_bytes().to_vec();
                changed[place] = digit;
                let changed = String::from_utf8(changed).unwrap();
                assert_eq!(id_number(&changed).is_ok(), changed == good, "{changed}");
            }
        }
    }

    #[test]
    fn credit_codes() {
        for good in ["91350100M000100Y43", "11100000000013127D", "11100000MB0143028R", "11100000000014445H"] {
            assert_eq!(uscc(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", CheckError::Length),
            ("91350100M000100Y4", CheckError::Length),
            ("91350100M000100Y433", CheckError::Length),
            ("91350100M000100Y44", CheckError::CheckDigit),
            ("91350100m000100y43", CheckError::Character),
            ("91350100I000100Y43", CheckError::Character),
            ("9135010OM000100Y43", CheckError::Character),
            ("９1350100M000100Y43", CheckError::Character),
        ] {
            assert_eq!(uscc(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn dates_and_times() {
        assert_eq!(date("2024-02-29").unwrap().to_string(), "2024-02-29");
        for good in ["1850-01-01", "9999-12-31", "2000-02-29"] {
            assert!(date(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("2023-02-31", CheckError::Calendar),
            ("2023-02-29", CheckError::Calendar),
            ("1900-02-29", CheckError::Calendar),
            ("1849-12-31", CheckError::Calendar),
            ("2023-13-01", CheckError::Calendar),
            ("2023-00-01", CheckError::Calendar),
            ("2023-01-00", CheckError::Calendar),
            ("2023-1-01", CheckError::Character),
            ("2023/01/01", CheckError::Character),
            ("20230101", CheckError::Character),
            ("2023-01-01T", CheckError::Length),
            ("2023-01", CheckError::Length),
            ("", CheckError::Length),
            ("+023-01-01", CheckError::Character),
            ("２０２３-01-01", CheckError::Character),
        ] {
            assert_eq!(date(bad), Err(why), "{bad}");
        }
        assert_eq!(datetime("2026-03-01T23:59"), Ok(()));
        for bad in ["2026-03-01T24:00", "2026-03-01T23:60", "2026-02-29T10:00"] {
            assert_eq!(datetime(bad), Err(CheckError::Calendar), "{bad}");
        }
        for bad in ["2026-03-01 23:59", "2026-03-01T23:59:00", "2026-03-01T23:59Z", "2026-03-01T2359"] {
            assert!(datetime(bad).is_err(), "{bad}");
        }
        assert_eq!(month("2026-12"), Ok(()));
        assert_eq!(month("2026-13"), Err(CheckError::Calendar));
        assert_eq!(month("2026-1"), Err(CheckError::Length));
    }

    #[test]
    fn decimals_divisions_and_phones() {
        for good in ["0", "12500.00", "-3.5", "0.5", "999999999999999999.999999"] {
            assert_eq!(decimal(good), Ok(()), "{good}");
        }
        for bad in ["", "-", ".5", "5.", "1e3", "+1", "01", "1,000", "1.2.3", "0.1234567", "1234567890123456789", "１"]
        {
            assert!(decimal(bad).is_err(), "{bad}");
        }
        for good in ["440784", "999999"] {
            assert_eq!(division(good), Ok(()), "{good}");
        }
        for bad in ["", "44078", "4407840", "040784", "44078a", "４４０７８４"] {
            assert!(division(bad).is_err(), "{bad}");
        }
        for good in ["12345", "13800138000", "0750-8888888", "+86-13800138000"] {
            assert_eq!(phone(good), Ok(()), "{good}");
        }
        for bad in ["", "+", "1234", "0750--8888888", "-88888888", "8888 8888", "123456789012345678901", "１２３４５６"]
        {
            assert!(phone(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn normalising_raises_the_check_digit_and_changes_nothing_else() {
        assert_eq!(normalised(ValueKind::IdNumber, "11010519491231002x").unwrap(), "11010519491231002X");
        assert_eq!(normalised(ValueKind::PersonOrEntityNo, "11010519491231002x").unwrap(), "11010519491231002X");
        assert_eq!(normalised(ValueKind::PersonOrEntityNo, "91350100M000100Y43").unwrap(), "91350100M000100Y43");
        assert_eq!(normalised(ValueKind::PersonOrEntityNo, "110105194912310020"), Err(CheckError::CheckDigit));
        assert_eq!(normalised(ValueKind::PersonOrEntityNo, "91350100M000100Y44"), Err(CheckError::CheckDigit));
        assert_eq!(normalised(ValueKind::PersonName, " 李 四 ").unwrap(), " 李 四 ");
        assert_eq!(normalised(ValueKind::PersonName, "李\n四"), Err(CheckError::Character));
        assert_eq!(normalised(ValueKind::Text, ""), Err(CheckError::Length));
        assert!(normalised(ValueKind::Text, &"a".repeat(256)).is_ok());
        assert_eq!(normalised(ValueKind::Text, &"a".repeat(257)), Err(CheckError::Length));
    }

    fn with_check_digit(body: &str) -> String {
        "0123456789X"
            .chars()
            .map(|check| format!("{body}{check}"))
            .find(|id| id_number(id) != Err(CheckError::CheckDigit))
            .unwrap()
    }
}
