/* Columns of the fold: per meter the targets that events change, and by how much; and the marks of the events. */
#ifndef TIDEMARK_COLUMNS_H
#define TIDEMARK_COLUMNS_H

#include "hashes.h"
#include "meters.h"
#include "table.h"

#ifndef CELLS_MAX /* tests make it small */
#define CELLS_MAX (1 << 19)
#endif
#define CELL_TABLE_BYTES_MAX ((size_t)32 << 20)
#define HOUR_US 3600000000LL

/* The columns of one meter. `numbers` are cells up to the record in hand and targets before it. */
typedef struct { Buffer numbers, positions, minors, times_us; size_t settled; } Column;

typedef struct {
    Buffer positions, buckets, members, unmetered;
    Column *of_meter;
    Table cells;
    Buffer targets;      /* of the cells, as far as Python has told them */
    Buffer cell_texts;   /* of the event in hand, one after the other */
    Blake2b marks, texts; /* after the key */
} Columns;

/* What an event in hand contributes to one meter. */
typedef struct { int64_t minor; int32_t meter, cell, cell_len, unused; } Contribution;

/* See `signing.mark`: the account's characters, a colon, the account and the id. */
static int put_mark(Columns *columns, const Span *account, const Span *id, int64_t position) {
    uint8_t text[12 + 4 * (NAME_CHARACTERS_MAX + ID_CHARACTERS_MAX)], made[DIGEST_BYTES], digits[10];
    size_t size = 0, count = 0;
    for (int32_t left = characters(account); left; left /= 10) digits[count++] = (uint8_t)('0' + left % 10);
    while (count) text[size++] = digits[--count];
    text[size++] = ':';
    memcpy(text + size, account->at, (size_t)account->len);
    size += (size_t)account->len;
    memcpy(text + size, id->at, (size_t)id->len);
    digest(&columns->marks, text, size + (size_t)id->len, made);
    uint32_t bucket = 0;
    uint64_t member = 0;
    for (int i = 0; i < 4; i++) bucket = bucket << 8 | made[i];
    for (int i = 4; i < DIGEST_BYTES; i++) member = member << 8 | made[i];
    return put(&columns->positions, &position, 8) && put(&columns->buckets, &bucket, 4)
        && put(&columns->members, &member, 8);
}

/* See `signing.distinct_member`. */
static int64_t member_of(const Columns *columns, const Span *text) {
    uint8_t made[DIGEST_BYTES];
    uint64_t member = 0;
    digest(&columns->texts, text->at, (size_t)text->len, made);
    for (int i = 0; i < 8; i++) member = member << 8 | made[i];
    return (int64_t)member;
}

/* The cell of a text, new or not; FULL at a bound. */
static int32_t cell_of(Columns *columns, const uint8_t *text, int32_t len) {
    uint64_t hash;
    int32_t cell = table_find(&columns->cells, text, (size_t)len, &hash);
    return cell >= 0 ? cell : table_add(&columns->cells, text, (size_t)len, hash);
}

static int put_contribution(Column *column, const Meter *meter, int32_t cell, int64_t position, int64_t minor,
                            int64_t time_us) {
    return put(&column->numbers, &cell, 4) && put(&column->positions, &position, 8)
        && (meter->takes == TAKES_NOTHING || put(&column->minors, &minor, 8))
        && (!meter->ordered || put(&column->times_us, &time_us, 8));
}

/* From cells to targets, for what was taken since the last call. 0: Python has not told the target of a cell. */
static int settle(Columns *columns, int32_t meter_count) {
    const int32_t *targets = (const int32_t *)columns->targets.at;
    size_t known = columns->targets.used / 4;
    for (int32_t i = 0; i < meter_count; i++) {
        Column *column = columns->of_meter + i;
        int32_t *numbers = (int32_t *)column->numbers.at;
        for (size_t end = column->numbers.used / 4; column->settled < end; column->settled++) {
            int32_t cell = numbers[column->settled];
            if (cell < 0 || (size_t)cell >= known) return 0;
            numbers[column->settled] = targets[cell];
        }
    }
    return 1;
}

static void columns_clear(Columns *columns, int32_t meter_count) {
    columns->positions.used = columns->buckets.used = columns->members.used = columns->unmetered.used = 0;
    for (int32_t i = 0; i < meter_count; i++) {
        Column *column = columns->of_meter + i;
        column->numbers.used = column->positions.used = column->minors.used = column->times_us.used = 0;
        column->settled = 0;
    }
}

static void columns_free(Columns *columns, int32_t meter_count) {
    Buffer *own[6] = {&columns->positions, &columns->buckets, &columns->members, &columns->unmetered, &columns->targets,
                      &columns->cell_texts};
    for (int i = 0; i < 6; i++) free(own[i]->at);
    for (int32_t i = 0; columns->of_meter && i < meter_count; i++) {
        Column *column = columns->of_meter + i;
        free(column->numbers.at);
        free(column->positions.at);
        free(column->minors.at);
        free(column->times_us.at);
    }
    free(columns->of_meter);
    table_free(&columns->cells);
}

static int columns_make(Columns *columns, const uint64_t seed[2], const uint8_t key[KEY_BYTES], int32_t meter_count) {
    columns->of_meter = calloc((size_t)meter_count + 1, sizeof *columns->of_meter);
    columns->marks = keyed(key, DIGEST_BYTES, "");
    columns->texts = keyed(key, 8, "distinct");
    return columns->of_meter && table_make(&columns->cells, seed, CELLS_MAX, CELL_TABLE_BYTES_MAX);
}

#endif
