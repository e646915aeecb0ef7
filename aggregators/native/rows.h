/* Rows of `usage_events` as columns of ClickHouse's Native format: texts with their lengths before them, numbers as
   they are in memory. The format: clickhouse.com/docs/interfaces/formats/Native. */
#ifndef TIDEMARK_ROWS_H
#define TIDEMARK_ROWS_H

#include "event.h"

#define COLUMNS 10
#define EXPONENT_FROM_DIGITS 6
/* Each level takes 2 KB of the stack. */
#define WRITTEN_DEPTH_MAX 16

enum { ACCOUNT, IDENTIFIER, EVENT_TYPE, EVENT_SOURCE, TIME_US, PAYLOAD, PARTITION, POSITION, STREAM_TIME_MS, DEFERRED };
static const char *const NAMES[COLUMNS] = {
    "account", "id", "type", "source", "time_us", "data", "partition", "position", "stream_time_ms", "deferred"};
static const char *const TYPES[COLUMNS] = {
    "String", "String", "String", "String", "Int64", "String", "UInt16", "UInt64", "Int64", "Bool"};

typedef struct {
    int64_t count;
    Buffer columns[COLUMNS];
    Buffer text; /* of the data in hand */
} Rows;

typedef struct { int64_t count; size_t used[COLUMNS]; } RowsMark;

static RowsMark rows_mark(const Rows *rows) {
    RowsMark mark = {.count = rows->count};
    for (int i = 0; i < COLUMNS; i++) mark.used[i] = rows->columns[i].used;
    return mark;
}

/* Take back all rows since the mark. */
static void rows_back(Rows *rows, const RowsMark *mark) {
    rows->count = mark->count;
    for (int i = 0; i < COLUMNS; i++) rows->columns[i].used = mark->used[i];
}

static void rows_free(Rows *rows) {
    for (int i = 0; i < COLUMNS; i++) free(rows->columns[i].at);
    free(rows->text.at);
}

static int before(const Span *a, const Span *b) {
    int32_t least = a->len < b->len ? a->len : b->len;
    int order = least ? memcmp(a->at, b->at, (size_t)least) : 0;
    return order ? order < 0 : a->len < b->len;
}

static int put_value(Buffer *into, const Span *value, int depth);

/* The numbers of an object's fields in the order of their keys. 0 where two keys are equal. */
static int in_order(const Span *keys, int fields, int order[FIELDS_MAX]) {
    for (int i = 0; i < fields; i++) {
        int at = i;
        for (; at > 0 && before(keys + i, keys + order[at - 1]); at--) order[at] = order[at - 1];
        order[at] = i;
        if (at > 0 && same(keys + i, keys + order[at - 1])) return 0;
    }
    return 1;
}

static int put_object(Buffer *into, const Span *keys, const Span *values, int fields, int depth) {
    int order[FIELDS_MAX];
    if (!in_order(keys, fields, order) || !put(into, "{", 1)) return 0;
    for (int i = 0; i < fields; i++) {
        const Span *key = keys + order[i];
        if ((i && !put(into, ",", 1)) || !put(into, "\"", 1) || !put(into, key->at, (size_t)key->len)
            || !put(into, "\":", 2) || !put_value(into, values + order[i], depth)) return 0;
    }
    return put(into, "}", 1);
}

/* An object within the data. */
static int put_inner(Buffer *into, const Span *object, int depth) {
    Span keys[FIELDS_MAX], values[FIELDS_MAX];
    const uint8_t *end = object->at + object->len, *p = space(object->at + 1, end);
    int fields = 0;
    while (p && p < end && *p != '}') {
        if (fields == FIELDS_MAX || !(p = key_at(p, end, keys + fields)) || keys[fields].kind != STRING
            || !(p = value(p, end, values + fields, 0))) return 0;
        fields++;
        p = space(p, end);
        if (p < end && *p == ',') p = space(p + 1, end);
    }
    return put_object(into, keys, values, fields, depth);
}

static int put_list(Buffer *into, const Span *list, int depth) {
    const uint8_t *end = list->at + list->len, *p = space(list->at + 1, end);
    Span each;
    int good = put(into, "[", 1);
    for (int number = 0; good && p < end && *p != ']'; number++) {
        if (!(p = value(p, end, &each, 0)) || (number && !put(into, ",", 1)) || !put_value(into, &each, depth))
            return 0;
        p = space(p, end);
        if (p < end && *p == ',') p = space(p + 1, end);
    }
    return good && put(into, "]", 1);
}

/* A value as `decode.normalised` writes it. 0 where Python must write it, or where there is no memory. */
static int put_value(Buffer *into, const Span *value, int depth) {
    switch (value->kind) {
    case STRING:
        return put(into, "\"", 1) && put(into, value->at, (size_t)value->len) && put(into, "\"", 1);
    case INTEGER:
        if (is(value, "-0", 2)) return 0;
        break;
    case DECIMAL: { /* small numbers get an exponent in Python */
        const uint8_t *point = memchr(value->at, '.', (size_t)value->len);
        if (!point || value->at + value->len - point > EXPONENT_FROM_DIGITS) return 0;
        break;
    }
    case OBJECT: return depth < WRITTEN_DEPTH_MAX && put_inner(into, value, depth + 1);
    case LIST: return depth < WRITTEN_DEPTH_MAX && put_list(into, value, depth + 1);
    case TRUE: case FALSE: case NOTHING: break;
    default: return 0;
    }
    return put(into, value->at, (size_t)value->len);
}

/* The data: keys in order, no space. */
static int put_data(Rows *rows, const Event *event) {
    rows->text.used = 0;
    return put_object(&rows->text, event->keys, event->values, event->fields, 0)
        && put_text(rows->columns + PAYLOAD, rows->text.at, rows->text.used);
}

static int put_numbers(Rows *rows, int64_t time_us, uint16_t partition, int64_t position, int64_t stream_time_ms,
                       uint8_t deferred) {
    Buffer *columns = rows->columns;
    return put(columns + TIME_US, &time_us, 8) && put(columns + PARTITION, &partition, 2)
        && put(columns + POSITION, &position, 8) && put(columns + STREAM_TIME_MS, &stream_time_ms, 8)
        && put(columns + DEFERRED, &deferred, 1);
}

/* 0 where Python must write the row, or where there is no memory: then the caller takes back what was written. */
static int put_row(Rows *rows, const Event *event, int64_t time_us, uint16_t partition, int64_t position,
                   int64_t stream_time_ms) {
    Buffer *columns = rows->columns;
    if (!put_data(rows, event)
        || !put_text(columns + ACCOUNT, event->subject.at, (size_t)event->subject.len)
        || !put_text(columns + IDENTIFIER, event->id.at, (size_t)event->id.len)
        || !put_text(columns + EVENT_TYPE, event->type.at, (size_t)event->type.len)
        || !put_text(columns + EVENT_SOURCE, event->source.at, (size_t)event->source.len)
        || !put_numbers(rows, time_us, partition, position, stream_time_ms, 0)) return 0;
    rows->count++;
    return 1;
}

static size_t block_bytes(const Rows *rows) {
    size_t size = 20;
    for (int i = 0; i < COLUMNS; i++) size += 20 + strlen(NAMES[i]) + strlen(TYPES[i]) + rows->columns[i].used;
    return size;
}

/* All rows as one block into `room` bytes, of which `block_bytes` are enough; the length of the block. */
static size_t put_block(const Rows *rows, uint8_t *at, size_t room) {
    Buffer out = {at, 0, room};
    uint8_t head[20];
    if (room < block_bytes(rows)) return 0;
    size_t size = varint(head, COLUMNS);
    size += varint(head + size, (uint64_t)rows->count);
    int good = put(&out, head, size);
    for (int i = 0; i < COLUMNS; i++)
        good = good && put_text(&out, NAMES[i], strlen(NAMES[i])) && put_text(&out, TYPES[i], strlen(TYPES[i]))
            && put(&out, rows->columns[i].at, rows->columns[i].used);
    return good ? out.used : 0;
}

#endif
