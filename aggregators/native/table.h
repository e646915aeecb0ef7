/* A table of byte strings: each new one gets the next number from 0 on. Bounded: at `count_max` numbers or at
   `bytes_max` bytes the table takes nothing new and says so, and whoever owns it begins anew. */
#ifndef TIDEMARK_TABLE_H
#define TIDEMARK_TABLE_H

#include "hashes.h"

#define FULL (-2)
#define SLOTS_MIN 1024

typedef struct { uint64_t hash; size_t at; int32_t len; } Key;

typedef struct {
    uint64_t seed[2];
    Key *keys;
    int32_t count, room, count_max;
    int32_t *slots; /* numbers, -1 for none; more than twice as many as keys */
    uint32_t mask;
    Buffer arena;
    size_t bytes_max;
} Table;

static int table_slots(Table *table, uint32_t mask) {
    int32_t *slots = malloc(((size_t)mask + 1) * sizeof *slots);
    if (!slots) return 0;
    memset(slots, 0xFF, ((size_t)mask + 1) * sizeof *slots);
    for (int32_t number = 0; number < table->count; number++) {
        uint32_t at = (uint32_t)table->keys[number].hash & mask;
        while (slots[at] >= 0) at = (at + 1) & mask;
        slots[at] = number;
    }
    free(table->slots);
    table->slots = slots;
    table->mask = mask;
    return 1;
}

static int table_make(Table *table, const uint64_t seed[2], int32_t count_max, size_t bytes_max) {
    memcpy(table->seed, seed, 16);
    table->count_max = count_max;
    table->bytes_max = bytes_max;
    return table_slots(table, SLOTS_MIN - 1);
}

static void table_clear(Table *table) {
    table->count = 0;
    table->arena.used = 0;
    memset(table->slots, 0xFF, ((size_t)table->mask + 1) * sizeof *table->slots);
}

static void table_free(Table *table) {
    free(table->keys);
    free(table->slots);
    free(table->arena.at);
}

/* The number of a byte string, or -1. `hash` is filled for `table_add`. */
static int32_t table_find(const Table *table, const uint8_t *at, size_t len, uint64_t *hash) {
    *hash = siphash(table->seed, at, len);
    for (uint32_t slot = (uint32_t)*hash & table->mask;; slot = (slot + 1) & table->mask) {
        int32_t number = table->slots[slot];
        if (number < 0) return -1;
        const Key *key = table->keys + number;
        if (key->hash == *hash && (size_t)key->len == len && (!len || !memcmp(table->arena.at + key->at, at, len)))
            return number;
    }
}

/* The number of a byte string that is not in the table yet; FULL at a bound, or where there is no memory. */
static int32_t table_add(Table *table, const uint8_t *at, size_t len, uint64_t hash) {
    if (table->count >= table->count_max || table->arena.used + len > table->bytes_max) return FULL;
    if ((uint32_t)table->count * 2 > table->mask && !table_slots(table, table->mask * 2 + 1)) return FULL;
    if (table->count == table->room) {
        int32_t room = table->room ? table->room * 2 : SLOTS_MIN;
        Key *keys = realloc(table->keys, (size_t)room * sizeof *keys);
        if (!keys) return FULL;
        table->keys = keys;
        table->room = room;
    }
    size_t start = table->arena.used;
    if (!put(&table->arena, at, len)) return FULL;
    uint32_t slot = (uint32_t)hash & table->mask;
    while (table->slots[slot] >= 0) slot = (slot + 1) & table->mask;
    table->keys[table->count] = (Key){hash, start, (int32_t)len};
    table->slots[slot] = table->count;
    return table->count++;
}

#endif
