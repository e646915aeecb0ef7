/* What is known of a record after it was read once: of each event the places of its fields and of its data's keys and
   values. A record is read ahead, so that accounts can be asked for, and its events are taken from the tape later. */
#ifndef TIDEMARK_TAPE_H
#define TIDEMARK_TAPE_H

#include "event.h"

#define KIND_BITS 4

typedef struct { uint32_t at, len_and_kind; } Note;
typedef struct { int64_t length, events, generation; } TapeHead;
typedef struct { Note whole, id, source, type, subject, time; int32_t account; int16_t fields, left; } EventNote;

static Note note_of(const Span *span, const uint8_t *record) {
    if (span->kind == ABSENT || !span->at) return (Note){0, ABSENT};
    return (Note){(uint32_t)(span->at - record), (uint32_t)span->len << KIND_BITS | (uint32_t)span->kind};
}

static Span span_at(Note note, const uint8_t *record) {
    return (Span){record + note.at, (int32_t)(note.len_and_kind >> KIND_BITS),
                  (int32_t)(note.len_and_kind & ((1u << KIND_BITS) - 1))};
}

/* Write an event. `left`: Python must look at it in any case. 0: there is no memory. */
static int tape_put(Buffer *tape, const Event *event, const uint8_t *record, int32_t account, int left) {
    Span whole = {event->start, (int32_t)(event->end - event->start), OBJECT};
    EventNote note = {.whole = note_of(&whole, record), .account = account, .left = (int16_t)left};
    if (!left) {
        note.id = note_of(&event->id, record);
        note.source = note_of(&event->source, record);
        note.type = note_of(&event->type, record);
        note.subject = note_of(&event->subject, record);
        note.time = note_of(&event->time, record);
        note.fields = (int16_t)event->fields;
    }
    if (!reserve(tape, sizeof note + (size_t)note.fields * 2 * sizeof(Note))) return 0;
    put(tape, &note, sizeof note);
    for (int i = 0; i < note.fields; i++) {
        Note pair[2] = {note_of(event->keys + i, record), note_of(event->values + i, record)};
        put(tape, pair, sizeof pair);
    }
    return 1;
}

/* Read the event at `*at` of the tape and go to the next one. Returns the event's number of the account. */
static int32_t tape_get(const uint8_t **at, const uint8_t *record, Event *event, int *left) {
    EventNote note;
    memcpy(&note, *at, sizeof note);
    *at += sizeof note;
    Span whole = span_at(note.whole, record);
    event->start = whole.at;
    event->end = whole.at + whole.len;
    event->id = span_at(note.id, record);
    event->source = span_at(note.source, record);
    event->type = span_at(note.type, record);
    event->subject = span_at(note.subject, record);
    event->time = span_at(note.time, record);
    event->fields = note.fields;
    for (int i = 0; i < note.fields; i++) {
        Note pair[2];
        memcpy(pair, *at, sizeof pair);
        *at += sizeof pair;
        event->keys[i] = span_at(pair[0], record);
        event->values[i] = span_at(pair[1], record);
    }
    *left = note.left;
    return note.account;
}

#endif
