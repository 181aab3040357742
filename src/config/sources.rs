//! Where settings come from: reads the files and finds the first source that sets a setting.

use super::{Arguments, ConfigError, SETTINGS, Setting};
use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// The variable that names the TOML file.
const CONFIG_VARIABLE: &str = "ONCELOG_CONFIG";

/// Where a value was set. Shown so that the setting is named too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A command-line flag, without its dashes.
    Flag(&'static str),
    /// An environment variable.
    Environment(String),
    /// A key in a file, and the file as it was named.
    File(String, String),
    /// The table of settings.
    Default(String),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(formatter, "--{flag}"),
            Self::Environment(name) => write!(formatter, "environment variable {name}"),
            Self::File(key, file) => write!(formatter, "{key} in {file}"),
            Self::Default(name) => write!(formatter, "the default of {name}"),
        }
    }
}

/// Environment variables; an empty one counts as not set, as container tools pass on what is unset that way.
#[derive(Clone, Debug, Default)]
pub struct Environment(pub HashMap<String, String>);

impl Environment {
    /// The environment of this process. Text that is not UTF-8 is kept as far as it can be shown, so that a setting
    /// with such a value is refused, not ignored.
    pub fn of_process() -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self(
            std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// All sources, read.
pub(super) struct Sources<'a> {
    arguments: &'a Arguments,
    environment: &'a Environment,
    env_file: NamedFile<Environment>,
    config_file: NamedFile<BTreeMap<String, String>>,
}

struct NamedFile<T> {
    name: String,
    content: T,
}

impl<'a> Sources<'a> {
    pub(super) fn read(
        arguments: &'a Arguments,
        environment: &'a Environment,
        folder: &Path,
    ) -> Result<Self, ConfigError> {
        let env_file = read_env_file(arguments, folder)?;
        let named = environment
            .get(CONFIG_VARIABLE)
            .or(env_file.content.get(CONFIG_VARIABLE));
        let config_file = arguments.config_file.clone().or(named.map(PathBuf::from));
        let config_file = read_config_file(config_file.as_deref(), folder)?;
        Ok(Self {
            arguments,
            environment,
            env_file,
            config_file,
        })
    }

    /// What the first source that sets it says, defaults left out.
    pub(super) fn find(&self, name: &str) -> Option<(Source, &str)> {
        let setting = setting(name)?;
        let flag = || {
            let value = self.arguments.values.get(name)?;
            Some((Source::Flag(setting.flag), value.as_str()))
        };
        let environment = || {
            let value = self.environment.get(name)?;
            Some((Source::Environment(name.to_owned()), value))
        };
        let env_file = || {
            let value = self.env_file.content.get(name)?;
            Some((Source::File(name.to_owned(), self.env_file.name.clone()), value))
        };
        let config_file = || {
            let value = self.config_file.content.get(&setting.key())?;
            Some((
                Source::File(setting.key(), self.config_file.name.clone()),
                value.as_str(),
            ))
        };
        flag().or_else(environment).or_else(env_file).or_else(config_file)
    }

    /// The setting's value, as `parse` understands it.
    pub(super) fn value<T>(&self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, ConfigError> {
        let default = setting(name)
            .and_then(|setting| setting.default)
            .unwrap_or_default();
        let (source_name, text) = self
            .find(name)
            .unwrap_or_else(|| (Source::Default(name.to_owned()), default));
        parse(text.trim()).ok_or_else(|| ConfigError::Value {
            source_name,
            value: text.to_owned(),
            allowed: setting(name).map_or("nothing", |setting| setting.allowed),
        })
    }
}

fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

fn read_env_file(arguments: &Arguments, folder: &Path) -> Result<NamedFile<Environment>, ConfigError> {
    let path = arguments
        .env_file
        .clone()
        .unwrap_or_else(|| PathBuf::from(".env"));
    let name = path.display().to_string();
    let text = match fs::read_to_string(folder.join(&path)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && arguments.env_file.is_none() => {
            String::new()
        }
        Err(error) => return Err(unreadable(name, &error)),
    };
    let text = text.trim_start_matches('\u{feff}');
    let mut variables = HashMap::new();
    for item in dotenvy::from_read_iter(text.as_bytes()) {
        // The parser's own message shows the line, which may hold a password.
        let (variable, value) = item.map_err(|error| {
            let line = match &error {
                dotenvy::Error::LineParse(line, _) => line_number(text, line),
                _ => None,
            };
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            ConfigError::File {
                file: name.clone(),
                problem: format!("{place}not of the form NAME=value; quote a value with blanks"),
            }
        })?;
        variables.insert(variable, value);
    }
    Ok(NamedFile {
        name,
        content: Environment(variables),
    })
}

fn line_number(text: &str, wanted: &str) -> Option<usize> {
    let wanted = wanted.lines().next().unwrap_or_default().trim();
    text.lines()
        .position(|line| line.trim() == wanted)
        .map(|index| index + 1)
}

fn read_config_file(
    path: Option<&Path>,
    folder: &Path,
) -> Result<NamedFile<BTreeMap<String, String>>, ConfigError> {
    let Some(path) = path else {
        return Ok(NamedFile {
            name: String::new(),
            content: BTreeMap::new(),
        });
    };
    let name = path.display().to_string();
    let problem = |problem: String| ConfigError::File {
        file: name.clone(),
        problem,
    };
    let text = fs::read_to_string(folder.join(path)).map_err(|error| unreadable(name.clone(), &error))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| problem(error.to_string().trim_end().to_owned()))?;
    let mut content = BTreeMap::new();
    for (key, value) in table {
        if !SETTINGS.iter().any(|setting| setting.key() == key) {
            let known: Vec<String> = SETTINGS.iter().map(Setting::key).collect();
            return Err(problem(format!(
                "unknown setting \"{key}\"; known: {}",
                known.join(", ")
            )));
        }
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            other => {
                return Err(problem(format!(
                    "{key} is a {}; allowed: a string or a number",
                    other.type_str()
                )));
            }
        };
        content.insert(key, value);
    }
    Ok(NamedFile { name, content })
}

fn unreadable(file: String, error: &io::Error) -> ConfigError {
    ConfigError::File {
        file,
        problem: format!("cannot be read: {error}"),
    }
}
