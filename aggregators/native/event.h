/* One event of a record: the spans of its fields and of its data. */
#ifndef TIDEMARK_EVENT_H
#define TIDEMARK_EVENT_H

#include "json.h"

#define ID_CHARACTERS_MAX 128
#define NAME_CHARACTERS_MAX 256
#define TIME_CHARACTERS_MAX 40

typedef struct {
    const uint8_t *start, *end;
    Span spec, id, source, type, subject, time;
    Span keys[FIELDS_MAX], values[FIELDS_MAX]; /* of `data` */
    int fields;
    int odd; /* valid JSON for Python: equal keys, escapes in keys, strange values, other payloads, many fields */
} Event;

enum { SPEC = 1, ID = 2, SOURCE = 4, TYPE = 8, SUBJECT = 16, NEEDED = 31, TIME = 32, DATA = 64, DATA_BASE64 = 128 };

static int field_of(const Span *key) {
    switch (key->len) {
    case 2: return is(key, "id", 2) ? ID : 0;
    case 4: return is(key, "type", 4) ? TYPE : is(key, "time", 4) ? TIME : is(key, "data", 4) ? DATA : 0;
    case 6: return is(key, "source", 6) ? SOURCE : 0;
    case 7: return is(key, "subject", 7) ? SUBJECT : 0;
    case 11: return is(key, "specversion", 11) ? SPEC : is(key, "data_base64", 11) ? DATA_BASE64 : 0;
    default: return 0;
    }
}

/* `p` is at the brace of the data. */
static const uint8_t *read_data(const uint8_t *p, const uint8_t *end, Event *event) {
    p = space(p + 1, end);
    if (p < end && *p == '}') return p + 1;
    for (;;) {
        if (event->fields == FIELDS_MAX) {
            event->odd = 1;
            event->fields = 0;
        }
        Span *key = event->keys + event->fields, *each = event->values + event->fields++;
        if (!(p = key_at(p, end, key)) || !(p = value(p, end, each, 2))) return NULL;
        if (key->kind != STRING || each->kind == STRANGE) event->odd = 1;
        p = space(p, end);
        if (p >= end) return NULL;
        if (*p == '}') return p + 1;
        if (*p != ',') return NULL;
        p = space(p + 1, end);
    }
}

static const uint8_t *read_field(const uint8_t *p, const uint8_t *end, Event *event, int field) {
    Span other, *into = &other;
    switch (field) {
    case SPEC: into = &event->spec; break;
    case ID: into = &event->id; break;
    case SOURCE: into = &event->source; break;
    case TYPE: into = &event->type; break;
    case SUBJECT: into = &event->subject; break;
    case TIME: into = &event->time; break;
    case DATA:
        if (p < end && *p == '{') return read_data(p, end, event);
        break;
    default: break;
    }
    p = value(p, end, into, 1);
    if (p && into->kind == STRANGE) event->odd = 1;
    if (p && (field == DATA || field == DATA_BASE64) && other.kind != NOTHING) event->odd = 1;
    return p;
}

/* `p` is at the brace of the event. The answer is after the event; NULL where the grammar does not hold. */
static const uint8_t *read_event(const uint8_t *p, const uint8_t *end, Event *event) {
    int seen = 0;
    event->start = p;
    event->fields = event->odd = 0;
    event->time.kind = ABSENT;
    p = space(p + 1, end);
    while (p >= end || *p != '}') {
        Span key;
        if (!(p = key_at(p, end, &key))) return NULL;
        int field = key.kind == STRING ? field_of(&key) : 0;
        if (key.kind != STRING || (field & seen)) event->odd = 1;
        seen |= field;
        if (!(p = read_field(p, end, event, field))) return NULL;
        p = space(p, end);
        if (p >= end) return NULL;
        if (*p == '}') break;
        if (*p != ',') return NULL;
        p = space(p + 1, end);
        if (p < end && *p == '}') return NULL; /* a comma before the end */
    }
    event->end = p + 1;
    if ((seen & NEEDED) != NEEDED) event->odd = 1;
    return event->end;
}

static int is_name(const Span *span, int32_t most) { return span->len > 0 && is_text(span, most); }

static int is_time(const Span *span) {
    return span->kind == ABSENT || span->kind == NOTHING || is_name(span, TIME_CHARACTERS_MAX);
}

/* Whether the fields beside the data have the form that the contract of an event needs. */
static int is_plain(const Event *event, int64_t event_bytes_max) {
    return !event->odd && event->end - event->start <= event_bytes_max && event->spec.kind == STRING
        && is(&event->spec, "1.0", 3) && is_name(&event->id, ID_CHARACTERS_MAX)
        && is_name(&event->source, NAME_CHARACTERS_MAX) && is_name(&event->type, NAME_CHARACTERS_MAX)
        && is_name(&event->subject, NAME_CHARACTERS_MAX) && is_time(&event->time);
}

#endif
