/* The bytes of a record to columns of the fold, or to rows of the archive. Plain C, called through ctypes: no Python.h,
   so one build serves every version of Python.

   The core decides nothing that is not plain. It refuses a record that is not JSON by a strict grammar, and then Python
   takes the whole record. It leaves out an event that is in any way unusual, and then Python judges that event alone.
   What the core takes, Python would have taken with the same values. Every table and buffer has a bound. */

#include "columns.h"
#include "marks.h"
#include "rows.h"
#include "tape.h"

#ifndef TIDEMARK_SOURCES
#define TIDEMARK_SOURCES "unknown"
#endif

#define EVENTS_MAX 65536
#define RECORD_BYTES_MAX (1 << 27) /* a note of the tape has 28 bits for a length */
#ifndef ACCOUNTS_MAX /* tests make it small */
#define ACCOUNTS_MAX (1 << 19)
#endif
#define ACCOUNT_BYTES_MAX ((size_t)32 << 20)

/* Answers that are no number of events. */
enum { REFUSED = -1, NO_MEMORY = -4 };
/* What became of an event; or NO_MEMORY. */
enum { LEFT_OUT, TAKEN };

/* An account's open period, the stream time from which the account is asked for again, and a number that no other
   period and no other state of the account has. */
typedef struct { int64_t from_us, until_us, ask_us, serial; } Account;

/* What the events of a record are checked against. A period that ended at `closed_us` or before is closed. */
typedef struct { int64_t stream_time_us, earliest_us, latest_us, closed_us; } Moment;

/* An event, by its record's place in the call and its index in the record, and the place of its bytes in the record.
   `asks`: its account is not known, and the place is that of the account's name. */
typedef struct { int32_t record, index, start, end, asks; } Place;

typedef struct {
    const Type *types;
    const Meter *meters;
    int32_t meter_count;
    uint16_t partition;
    int32_t for_rows;
    int64_t event_bytes_max;
    Table type_names, account_names;
    Buffer accounts, tape, places;
    int32_t record; /* the place of the record in hand in its call */
    int64_t generation; /* of the numbers of accounts */
    Contribution *contributions;
    Columns columns;
    Rows rows;
} Core;

static int put_place(Core *core, int32_t index, const uint8_t *start, const uint8_t *end, const uint8_t *record,
                     int asks) {
    Place place = {core->record, index, (int32_t)(start - record), (int32_t)(end - record), asks};
    return put(&core->places, &place, sizeof place);
}

static const Account *account_at(const Core *core, int32_t number) {
    return (const Account *)core->accounts.at + number;
}

/* Note one event on the tape, and its account if it must be asked for. */
static int read_one(Core *core, const Event *event, int32_t index, int64_t stream_time_us, const uint8_t *record) {
    const Span *name = &event->subject;
    int left = !is_plain(event, core->event_bytes_max), good = 1;
    int32_t account = -1;
    if (left) {
        good = put_place(core, index, event->start, event->end, record, 0);
    } else {
        uint64_t hash;
        account = table_find(&core->account_names, name->at, (size_t)name->len, &hash);
        if (account < 0 || account_at(core, account)->ask_us <= stream_time_us)
            good = put_place(core, index, name->at, name->at + name->len, record, 1);
    }
    return good && tape_put(&core->tape, event, record, account, left);
}

/* Read an object or a list of objects. The number of events, or a negative answer. */
static int64_t read_all(Core *core, const uint8_t *record, const uint8_t *end, int64_t stream_time_us) {
    Event event;
    int32_t index = 0;
    const uint8_t *p = record;
    if (*p == '{') {
        p = read_event(p, end, &event);
        if (!p || space(p, end) != end) return REFUSED;
        event.end = end; /* the space after it counts as its own */
        return read_one(core, &event, 0, stream_time_us, record) ? 1 : NO_MEMORY;
    }
    p = space(p + 1, end);
    if (p < end && *p == ']') return space(p + 1, end) == end ? 0 : REFUSED;
    for (;;) {
        if (p >= end || *p != '{' || index == EVENTS_MAX || !(p = read_event(p, end, &event))) return REFUSED;
        if (!read_one(core, &event, index++, stream_time_us, record)) return NO_MEMORY;
        p = space(p, end);
        if (p >= end) return REFUSED;
        if (*p == ']') return space(p + 1, end) == end ? index : REFUSED;
        if (*p != ',') return REFUSED;
        p = space(p + 1, end);
    }
}

/* Read a record on the tape, from `*at` on. The number of events, or a negative answer: then the tape is as before. */
static int64_t read_record(Core *core, const uint8_t *record, int64_t length, int64_t stream_time_us, int64_t *at) {
    const uint8_t *end = record + length;
    size_t start = core->tape.used, places = core->places.used;
    TapeHead head = {length, REFUSED, core->generation};
    *at = (int64_t)start;
    if (length < 2 || length > RECORD_BYTES_MAX || (*record != '[' && *record != '{') || !is_utf8(record, end))
        return REFUSED;
    if (!put(&core->tape, &head, sizeof head)) return NO_MEMORY;
    head.events = read_all(core, record, end, stream_time_us);
    if (head.events >= 0) {
        memcpy(core->tape.at + start, &head, sizeof head);
    } else {
        core->tape.used = start;
        core->places.used = places;
    }
    return head.events;
}

/* Read records on the tape. Of each: where on the tape, and the number of events or REFUSED. Places are those of
   accounts that are not known, and of events that Python must look at in any case. 0: there is no memory. */
int32_t tm_read(Core *core, const uint8_t *const *records, const int64_t *lengths, int32_t count, int64_t stream_time_us,
                int64_t *at, int64_t *events) {
    core->places.used = 0;
    for (int32_t i = 0; i < count; i++) {
        core->record = i;
        events[i] = read_record(core, records[i], lengths[i], stream_time_us, at + i);
        if (events[i] == NO_MEMORY) return 0;
    }
    return 1;
}

/* What a meter takes of an event. 1: it contributes, 0: the meter does not want it, -1: Python must look. */
static int contribute(Core *core, const Event *event, int32_t number, int64_t serial, int64_t time_us,
                      Contribution *into) {
    const Meter *meter = core->meters + number;
    uint8_t cell[CELL_BYTES_MAX];
    Span given, text;
    int wanted = passes(meter, event);
    if (wanted <= 0) return wanted;
    into->meter = number;
    into->minor = 1;
    into->cell_len = cell_text(meter, event, serial, time_us / HOUR_US, number, cell);
    if (into->cell_len < 0) return -1;
    if (meter->takes != TAKES_NOTHING && !value_at(event, &meter->value, &given)) return -1;
    if (meter->takes == TAKES_TEXT) {
        if (!text_of(&given, &text) || !text.len) return -1;
        if (!core->for_rows) into->minor = member_of(&core->columns, &text);
    } else if (meter->takes == TAKES_QUANTITY && !minor_of(&given, meter->scale, meter->negative, &into->minor)) {
        return -1;
    }
    return core->for_rows || put(&core->columns.cell_texts, cell, (size_t)into->cell_len) ? 1 : NO_MEMORY;
}

/* All meters of the event's type. The number of contributions; -1: Python must look. */
static int contribute_all(Core *core, const Event *event, int64_t serial, int64_t time_us) {
    uint64_t hash;
    int made = 0;
    int32_t type = table_find(&core->type_names, event->type.at, (size_t)event->type.len, &hash);
    core->columns.cell_texts.used = 0;
    if (type < 0) return 0;
    if (core->types[type].count < 0) return -1;
    for (int32_t i = 0; i < core->types[type].count; i++) {
        int done = contribute(core, event, core->types[type].first + i, serial, time_us, core->contributions + made);
        if (done < 0) return done;
        made += done;
    }
    return made;
}

/* LEFT_OUT where the table of cells is full. */
static int put_columns(Core *core, const Event *event, int made, int64_t time_us, int64_t position) {
    Columns *columns = &core->columns;
    Contribution *first = core->contributions;
    const uint8_t *text = columns->cell_texts.at;
    for (Contribution *each = first; each < first + made; text += each++->cell_len) {
        each->cell = cell_of(columns, text, each->cell_len);
        if (each->cell < 0) return LEFT_OUT;
    }
    for (const Contribution *each = first; each < first + made; each++) {
        Column *column = columns->of_meter + each->meter;
        if (!put_contribution(column, core->meters + each->meter, each->cell, position, each->minor, time_us))
            return NO_MEMORY;
    }
    int good = (made || put(&columns->unmetered, &position, 8))
        && put_mark(columns, &event->subject, &event->id, position);
    return good ? TAKEN : NO_MEMORY;
}

static int take(Core *core, const Event *event, int32_t number, int64_t position, const Moment *moment) {
    int64_t time_us;
    if (event->time.kind == ABSENT || event->time.kind == NOTHING) time_us = moment->stream_time_us;
    else if (!instant_us(&event->time, &time_us)) return LEFT_OUT;
    if (time_us < moment->earliest_us || time_us > moment->latest_us || number < 0) return LEFT_OUT;
    const Account *account = account_at(core, number);
    if (time_us < account->from_us || time_us >= account->until_us || account->until_us <= moment->closed_us)
        return LEFT_OUT;
    int made = contribute_all(core, event, account->serial, time_us);
    if (made < 0) return made == NO_MEMORY ? NO_MEMORY : LEFT_OUT;
    if (!core->for_rows) return put_columns(core, event, made, time_us, position);
    RowsMark mark = rows_mark(&core->rows);
    if (put_row(&core->rows, event, time_us, core->partition, position, moment->stream_time_us / 1000)) return TAKEN;
    rows_back(&core->rows, &mark);
    return LEFT_OUT;
}

/* Take the events of the record that was read at `at` of the tape. 1: done, 0: there is no memory, or another record
   was read there. */
static int take_record(Core *core, const uint8_t *record, int64_t length, int64_t at, int64_t base,
                       const Moment *moment) {
    TapeHead head;
    Event event;
    if (at < 0 || (size_t)at + sizeof head > core->tape.used) return 0;
    memcpy(&head, core->tape.at + at, sizeof head);
    if (head.length != length) return 0;
    const uint8_t *next = core->tape.at + at + sizeof head;
    for (int32_t index = 0; index < head.events; index++) {
        int left, taken = LEFT_OUT;
        int32_t account = tape_get(&next, record, &event, &left);
        if (!left) {
            uint64_t hash;
            if (account < 0 || head.generation != core->generation)
                account = table_find(&core->account_names, event.subject.at, (size_t)event.subject.len, &hash);
            taken = take(core, &event, account, base + index, moment);
        }
        if (taken < 0 || (taken == LEFT_OUT && !put_place(core, index, event.start, event.end, record, 0))) return 0;
    }
    return 1;
}

/* Take the events of records that were read. Places are those of the events that are left out. 0: a record is not the
   one that was read there, or there is no memory; then the core is of no use any more. */
int32_t tm_take(Core *core, const uint8_t *const *records, const int64_t *lengths, const int64_t *at,
                const int64_t *bases, const Moment *moments, int32_t count) {
    core->places.used = 0;
    for (int32_t i = 0; i < count; i++) {
        core->record = i;
        if (!take_record(core, records[i], lengths[i], at[i], bases[i], moments + i)) return 0;
    }
    return 1;
}

const Place *tm_places(const Core *core, int64_t *count) {
    *count = (int64_t)(core->places.used / sizeof(Place));
    return (const Place *)core->places.at;
}

int64_t tm_tape_bytes(const Core *core) { return (int64_t)core->tape.used; }

void tm_clear_tape(Core *core) { core->tape.used = 0; }

/* Tell the core accounts: their names one after the other, the lengths of the names, and what is known of each. 0: the
   table of accounts is full; those before were told. */
int32_t tm_tell(Core *core, const uint8_t *names, const int32_t *lens, const Account *accounts, int32_t count) {
    for (int32_t i = 0; i < count; names += lens[i++]) {
        uint64_t hash;
        int32_t number = table_find(&core->account_names, names, (size_t)lens[i], &hash);
        if (number < 0) {
            if (!reserve(&core->accounts, sizeof *accounts)) return 0;
            if (table_add(&core->account_names, names, (size_t)lens[i], hash) < 0) return 0;
            put(&core->accounts, accounts + i, sizeof *accounts);
        } else {
            memcpy(core->accounts.at + (size_t)number * sizeof *accounts, accounts + i, sizeof *accounts);
        }
    }
    return 1;
}

void tm_forget_accounts(Core *core) {
    table_clear(&core->account_names);
    core->accounts.used = 0;
    core->generation++;
}

/* Cells. */

int32_t tm_cells(const Core *core) { return core->columns.cells.count; }

/* Whether the table of cells is more than half full. The next record may fill it, and then events are left out. */
int32_t tm_cells_are_many(const Core *core) {
    const Table *cells = &core->columns.cells;
    return cells->count > cells->count_max / 2 || cells->arena.used > cells->bytes_max / 2;
}

/* The texts of the cells from a number on, one after the other. */
const uint8_t *tm_cell_texts(const Core *core, int32_t from, int64_t *len) {
    const Table *cells = &core->columns.cells;
    *len = 0;
    if (from < 0 || from >= cells->count) return NULL;
    *len = (int64_t)(cells->arena.used - cells->keys[from].at);
    return cells->arena.at + cells->keys[from].at;
}

/* Tell the targets of the next cells, and go from cells to targets in the columns. 0: one is missing, or no memory. */
int32_t tm_settle(Core *core, const int32_t *targets, int32_t count) {
    return put(&core->columns.targets, targets, (size_t)count * 4) && settle(&core->columns, core->meter_count);
}

/* Forget all cells. Everything must be settled. */
void tm_forget_cells(Core *core) {
    table_clear(&core->columns.cells);
    core->columns.targets.used = 0;
}

/* What was taken. Kinds: positions, buckets, members, unmetered; of a meter: numbers, positions, minors, times. */
const void *tm_column(const Core *core, int32_t meter, int32_t kind, int64_t *bytes) {
    const Columns *columns = &core->columns;
    const Buffer *all[4] = {&columns->positions, &columns->buckets, &columns->members, &columns->unmetered};
    const Buffer *buffer = all[kind & 3];
    if (meter >= 0) {
        const Column *column = columns->of_meter + meter;
        const Buffer *own[4] = {&column->numbers, &column->positions, &column->minors, &column->times_us};
        buffer = own[kind & 3];
    }
    *bytes = (int64_t)buffer->used;
    return buffer->at;
}

void tm_clear_columns(Core *core) { columns_clear(&core->columns, core->meter_count); }

/* Rows. */

/* One row that Python made. 0: there is no memory, and nothing was written. */
int32_t tm_row(Core *core, const Text texts[5], int64_t time_us, int64_t position, int64_t stream_time_ms,
               uint8_t deferred) {
    static const int OF[5] = {ACCOUNT, IDENTIFIER, EVENT_TYPE, EVENT_SOURCE, PAYLOAD};
    RowsMark mark = rows_mark(&core->rows);
    int good = put_numbers(&core->rows, time_us, core->partition, position, stream_time_ms, deferred);
    for (int i = 0; i < 5; i++)
        good = good && put_text(core->rows.columns + OF[i], texts[i].at, (size_t)texts[i].len);
    if (good) core->rows.count++;
    else rows_back(&core->rows, &mark);
    return good;
}

int64_t tm_rows(const Core *core) { return core->rows.count; }

int64_t tm_block_bytes(const Core *core) { return (int64_t)block_bytes(&core->rows); }

/* All rows as a block; then there are none. 0: the room is too small. */
int64_t tm_block(Core *core, uint8_t *into, int64_t room) {
    size_t size = put_block(&core->rows, into, (size_t)room);
    if (size) rows_back(&core->rows, &(RowsMark){0});
    return (int64_t)size;
}

/* The core. */

void tm_free(Core *core) {
    if (!core) return;
    table_free(&core->type_names);
    table_free(&core->account_names);
    free(core->accounts.at);
    free(core->tape.at);
    free(core->places.at);
    free(core->contributions);
    columns_free(&core->columns, core->meter_count);
    rows_free(&core->rows);
    free(core);
}

/* NULL where there is no memory. `types` and `meters` stay Python's. */
Core *tm_new(const uint64_t seed[2], const uint8_t key[KEY_BYTES], uint16_t partition, int32_t for_rows,
             int64_t event_bytes_max, const Type *types, int32_t type_count, const Meter *meters, int32_t meter_count) {
    Core *core = calloc(1, sizeof *core);
    if (!core) return NULL;
    *core = (Core){.types = types, .meters = meters, .meter_count = meter_count, .partition = partition,
                   .for_rows = for_rows, .event_bytes_max = event_bytes_max};
    core->contributions = calloc((size_t)meter_count + 1, sizeof *core->contributions);
    int good = core->contributions && table_make(&core->type_names, seed, INT32_MAX, SIZE_MAX / 2)
        && table_make(&core->account_names, seed, ACCOUNTS_MAX, ACCOUNT_BYTES_MAX)
        && columns_make(&core->columns, seed, key, meter_count);
    for (int32_t i = 0; good && i < type_count; i++) {
        uint64_t hash;
        size_t len = (size_t)types[i].name.len;
        good = table_find(&core->type_names, types[i].name.at, len, &hash) < 0
            && table_add(&core->type_names, types[i].name.at, len, hash) == i;
    }
    if (good) return core;
    tm_free(core);
    return NULL;
}

const char *tm_sources(void) { return TIDEMARK_SOURCES; }
