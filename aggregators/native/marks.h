/* Marks of a flush: which came before, and all of them by the set that stores them. */
#ifndef TIDEMARK_MARKS_H
#define TIDEMARK_MARKS_H

#include "bytes.h"

/* The members that are in `present` or came before: their places, in order. -1: there is no memory. Members are keyed
   hashes, so nobody can send many that begin at one slot. */
int64_t tm_repeats(const int64_t *members, int64_t count, const int64_t *present, int64_t present_count,
                   int64_t *places) {
    uint64_t mask = 1023;
    int64_t found = 0;
    while (mask < 2 * (uint64_t)(count + present_count)) mask = mask * 2 + 1;
    /* Places from 1 on; those after `present_count` are of `members`. */
    uint32_t *slots = calloc(mask + 1, sizeof *slots);
    if (!slots) return -1;
    for (int64_t i = 0; i < present_count + count; i++) {
        int64_t member = i < present_count ? present[i] : members[i - present_count];
        uint64_t slot = (uint64_t)member & mask;
        for (; slots[slot]; slot = (slot + 1) & mask) {
            int64_t held = slots[slot] - 1;
            if ((held < present_count ? present[held] : members[held - present_count]) == member) break;
        }
        if (!slots[slot]) slots[slot] = (uint32_t)i + 1;
        else if (i >= present_count) places[found++] = i - present_count;
    }
    free(slots);
    return found;
}

/* A number as a bulk string of Redis' protocol, of at most 27 bytes. */
static size_t bulk(uint8_t *into, int64_t number) {
    uint8_t digits[20];
    int count = 0, minus = number < 0;
    uint64_t left = minus ? 0 - (uint64_t)number : (uint64_t)number;
    do digits[count++] = (uint8_t)('0' + left % 10);
    while (left /= 10);
    int length = count + minus;
    uint8_t *p = into;
    *p++ = '$';
    if (length > 9) *p++ = (uint8_t)('0' + length / 10);
    *p++ = (uint8_t)('0' + length % 10);
    *p++ = '\r';
    *p++ = '\n';
    if (minus) *p++ = '-';
    while (count) *p++ = digits[--count];
    *p++ = '\r';
    *p++ = '\n';
    return (size_t)(p - into);
}

/* The members by set, within a set in the order of before; and their texts. `ends` and `text_ends` have, for each set,
   where it ends. `ends` begins with zeros. */
void tm_by_set(const uint32_t *buckets, const int64_t *members, int64_t count, int64_t sets, int64_t *ends,
               int64_t *sorted, int64_t *text_ends, uint8_t *text) {
    int64_t at = 0;
    size_t used = 0;
    for (int64_t i = 0; i < count; i++) ends[buckets[i] % (uint64_t)sets]++;
    for (int64_t set = 0; set < sets; set++) { /* to where each set begins */
        int64_t size = ends[set];
        ends[set] = at;
        at += size;
    }
    for (int64_t i = 0; i < count; i++) sorted[ends[buckets[i] % (uint64_t)sets]++] = members[i];
    at = 0;
    for (int64_t set = 0; set < sets; set++) {
        for (; at < ends[set]; at++) used += bulk(text + used, sorted[at]);
        text_ends[set] = (int64_t)used;
    }
}

#endif
