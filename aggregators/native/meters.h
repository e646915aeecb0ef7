/* The meters in force, and what an event gives to each of those that want it. Python fills these structures, and its
   memory stays as long as the core. */
#ifndef TIDEMARK_METERS_H
#define TIDEMARK_METERS_H

#include "values.h"

#define DIMENSIONS_MAX 8
/* Before the text of a cell: the account's serial number, the hour, the meter. */
#define CELL_HEAD_BYTES 20
#define DIMENSION_BYTES_MAX (4 + 4 * DIMENSION_CHARACTERS_MAX)
#define CELL_BYTES_MAX (CELL_HEAD_BYTES + DIMENSIONS_MAX * DIMENSION_BYTES_MAX)

typedef struct { const uint8_t *at; int32_t len, unused; } Text;
typedef struct { const Text *keys; int32_t count, unused; } Path;
typedef struct { Path path; const Text *values; int32_t count, inside; } Filter;

enum { TAKES_NOTHING, TAKES_QUANTITY, TAKES_TEXT };

typedef struct {
    Path value;
    const Path *dimensions;
    const Filter *filters;
    int32_t dimension_count, filter_count, takes, scale, negative, ordered;
} Meter;

/* The meters of an event type stand together. A count below 0: Python takes all events of the type. */
typedef struct { Text name; int32_t first, count; } Type;

static Span span_of(const Text *text) { return (Span){text->at, text->len, STRING}; }

/* The value at a path of the event's data; ABSENT where there is none. 0 where Python must look. */
static int value_at(const Event *event, const Path *path, Span *found) {
    Span key = span_of(path->keys);
    found->at = NULL;
    found->len = 0;
    found->kind = ABSENT;
    for (int i = event->fields - 1; i >= 0; i--) { /* of equal keys the last */
        if (same(event->keys + i, &key)) {
            *found = event->values[i];
            break;
        }
    }
    for (int32_t level = 1; level < path->count; level++) {
        if (found->kind != OBJECT) {
            found->kind = ABSENT;
            return 1;
        }
        Span object = *found;
        key = span_of(path->keys + level);
        if (!member(&object, &key, found)) return 0;
    }
    return 1;
}

static int text_at(const Event *event, const Path *path, Span *text) {
    Span found;
    return value_at(event, path, &found) && text_of(&found, text);
}

/* 1: the event passes, 0: it does not, -1: Python must look. */
static int passes(const Meter *meter, const Event *event) {
    for (int32_t i = 0; i < meter->filter_count; i++) {
        const Filter *filter = meter->filters + i;
        Span text;
        if (!text_at(event, &filter->path, &text)) return -1;
        int inside = 0;
        for (int32_t v = 0; v < filter->count && !inside; v++) {
            Span wanted = span_of(filter->values + v);
            inside = same(&wanted, &text);
        }
        if (inside != filter->inside) return 0;
    }
    return 1;
}

/* The text of a cell: its head, and the values of the dimensions, each with its length before it. The length, or -1
   where Python must look. */
static int32_t cell_text(const Meter *meter, const Event *event, int64_t serial, int64_t hour, int32_t number,
                         uint8_t cell[CELL_BYTES_MAX]) {
    int32_t size = CELL_HEAD_BYTES;
    memcpy(cell, &serial, 8);
    memcpy(cell + 8, &hour, 8);
    memcpy(cell + 16, &number, 4);
    for (int32_t i = 0; i < meter->dimension_count; i++) {
        Span text;
        if (!text_at(event, meter->dimensions + i, &text)) return -1;
        memcpy(cell + size, &text.len, 4);
        if (text.len) memcpy(cell + size + 4, text.at, (size_t)text.len);
        size += 4 + text.len;
    }
    return size;
}

#endif
