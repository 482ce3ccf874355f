"""The tables of a journal's file."""

APPLICATION = 0x656D6272  # "embr", where SQLite's header says whose file it is
VERSION = 2

TABLES = (
    "create table texts (id integer primary key, digest blob not null unique, words text not null)",
    # `sample` is the key's bits, null for the one sample of a call without a key; `cost` and `logprob` are null where
    # unknown, `began` and `ended` are seconds since 1970, `answered_by` is the model that the service names, `lane` and
    # `scope` tell who has asked first.
    """create table calls (
        id integer primary key, digest blob not null unique,
        provider text not null, endpoint text not null, model text not null, parameters text not null, sample text,
        answer text not null, answer_digest blob not null, answered_by text not null, request_id text not null,
        input_tokens integer not null, output_tokens integer not null, cost real, logprob real,
        alternatives text not null, began real not null, ended real not null, attempts integer not null,
        lane text not null, scope text not null)""",
    """create table messages (
        call integer not null references calls, position integer not null, role text not null,
        text integer not null references texts, primary key (call, position)) without rowid""",
)
