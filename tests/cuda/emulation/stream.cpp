// Streams, events and recorded launches.
//
// What a stream is asked for waits in its queue until somebody waits for the stream, for an event behind it, or asks for
// more than the queue has room for: as late as a device might do it. Streams know of each other by events alone.
#include "driver.h"

#include <algorithm>
#include <deque>
#include <map>
#include <cstring>
#include <memory>
#include <thread>

namespace driver {
namespace {

struct Stream;

struct Event {
    // How often it was recorded, and which of them the stream has come to.
    uint64_t recorded = 0, reached = 0;
    Stream *stream = nullptr;
    // Recorded on a stream whose launches are recorded.
    bool captured = false;
};

struct Item {
    Work work;
    // What is waited for first.
    std::shared_ptr<Event> event;
    uint64_t until;
};

struct Stream {
    std::deque<Item> queue;
    // Whether the stream of nobody waits for it.
    bool blocking = true;
    std::shared_ptr<std::vector<Work>> recorded;
    std::thread::id recorder;
    // Something was asked for meanwhile that cannot be recorded.
    bool spoilt = false;
};

using Recorded = std::shared_ptr<std::vector<Work>>;

// Never destroyed: threads may use them to the very end. Events may refer to any stream, so none is deleted.
auto &nobodys = *new Stream;
auto &streams = *new std::vector<Stream *>{&nobodys};
auto &events = *new std::map<Handle, std::shared_ptr<Event>>;

Stream &of(Handle stream) {
    // Nothing, and the names of the streams of nobody and of a thread.
    return reinterpret_cast<uintptr_t>(stream) <= 2 ? nobodys : *static_cast<Stream *>(stream);
}

// Whether graphs are refused at this step.
bool no_room_to(const char *step) {
    const char *refused = getenv("ANDON_EMULATED_GRAPHS_REFUSED");
    return refused != nullptr && strcmp(refused, step) == 0;
}

// What was done so far.
size_t done;

// Notes what was done while somebody waited.
void note(size_t before) {
    const char *path = getenv("ANDON_EMULATED_WAITS");
    if (path == nullptr) return;
    FILE *file = fopen(path, "a");
    if (file == nullptr) return;
    fprintf(file, "%zu\n", done - before);
    fclose(file);
}

void run_one(Stream &stream) {
    Item item = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (item.event) {
        while (item.event->reached < item.until && !item.event->stream->queue.empty()) run_one(*item.event->stream);
    }
    item.work();
    done++;
}

void run(Stream &stream) {
    while (!stream.queue.empty()) run_one(stream);
}

// Some of what there is to do, so that who asks again and again comes to an end.
bool run_some(Stream &stream) {
    constexpr int SOME = 16;
    for (int i = 0; i < SOME && !stream.queue.empty(); i++) run_one(stream);
    return stream.queue.empty();
}

// What stays true on a device that has failed: the order of things.
Result put(Stream &stream, Item item) {
    stream.queue.push_back(std::move(item));
    const size_t room = setting("ANDON_EMULATED_QUEUE", 1024);
    while (stream.queue.size() > room) run_one(stream);
    return SUCCESS;
}

Result spoil(Stream &stream, Result why) {
    stream.spoilt = true;
    return why;
}

} // namespace

Result ask(Handle handle, Work work) {
    if (broken != SUCCESS) return broken;
    Stream &stream = of(handle);
    if (stream.recorded) {
        stream.recorded->push_back(std::move(work));
        return SUCCESS;
    }
    if (&stream == &nobodys) {
        for (Stream *other : streams) {
            if (other->blocking) run(*other);
        }
    } else if (stream.blocking) {
        run(nobodys);
    }
    // What goes wrong on a device is told to the next call.
    return put(stream, {[work = std::move(work)] {
                            if (broken == SUCCESS) work();
                        },
                        nullptr, 0});
}

bool is_recording(Handle stream) { return of(stream).recorded != nullptr; }

Result not_recorded(Handle handle) {
    if (broken != SUCCESS) return broken;
    Stream &stream = of(handle);
    return stream.recorded ? spoil(stream, CAPTURE_UNSUPPORTED) : SUCCESS;
}

Result not_recording() {
    if (broken != SUCCESS) return broken;
    for (Stream *stream : streams) {
        if (stream->recorded && stream->recorder == std::this_thread::get_id()) {
            return spoil(*stream, CAPTURE_UNSUPPORTED);
        }
    }
    return SUCCESS;
}

void run_all(Handle stream) {
    const size_t before = done;
    run(of(stream));
    note(before);
}

void run_all() {
    for (Stream *stream : streams) run(*stream);
}

} // namespace driver

using namespace driver;

extern "C" {

Result cuCtxSynchronize() {
    LOCKED_AND_WHOLE;
    for (Stream *stream : streams) {
        if (stream->recorded) return spoil(*stream, CAPTURE_UNSUPPORTED);
    }
    run_all();
    return broken;
}

Result cuStreamCreate(Handle *handle, unsigned flags) {
    LOCKED_AND_WHOLE;
    auto *stream = new Stream;
    stream->blocking = (flags & 1) == 0;
    streams.push_back(stream);
    return *handle = stream, SUCCESS;
}
Result cuStreamCreateWithPriority(Handle *stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, SUCCESS; }
// What it was asked for is done.
Result cuStreamDestroy_v2(Handle stream) {
    LOCKED;
    run_all(stream);
    return broken;
}
Result cuStreamSynchronize(Handle stream) {
    LOCKED;
    if (Result refused = not_recorded(stream)) return refused;
    run_all(stream);
    return broken;
}
Result cuStreamQuery(Handle stream) {
    LOCKED;
    if (Result refused = not_recorded(stream)) return refused;
    const bool done = of(stream).queue.empty();
    run_some(of(stream));
    return broken != SUCCESS ? broken : done ? SUCCESS : NOT_READY;
}
Result cuLaunchHostFunc(Handle stream, void (*function)(void *), void *data) {
    LOCKED;
    return ask(stream, [=] { function(data); });
}

Result cuEventCreate(Handle *handle, unsigned) {
    LOCKED_AND_WHOLE;
    auto event = std::make_shared<Event>();
    events[event.get()] = event;
    return *handle = event.get(), SUCCESS;
}
Result cuEventDestroy_v2(Handle handle) {
    LOCKED;
    return events.erase(handle) == 1 ? SUCCESS : INVALID_HANDLE;
}
Result cuEventRecord(Handle handle, Handle where) {
    LOCKED_AND_WHOLE;
    auto found = events.find(handle);
    if (found == events.end()) return INVALID_HANDLE;
    std::shared_ptr<Event> event = found->second;
    Stream &stream = of(where);
    event->captured = stream.recorded != nullptr;
    event->stream = &stream;
    if (event->captured) return SUCCESS;
    const uint64_t now = ++event->recorded;
    return put(stream, {[=] { event->reached = std::max(event->reached, now); }, nullptr, 0});
}
Result cuStreamWaitEvent(Handle where, Handle handle, unsigned) {
    LOCKED_AND_WHOLE;
    auto found = events.find(handle);
    if (found == events.end()) return INVALID_HANDLE;
    std::shared_ptr<Event> event = found->second;
    Stream &stream = of(where);
    // Other streams could join what is recorded; the emulation has one a time.
    if (event->captured) return event->stream == &stream ? SUCCESS : spoil(*event->stream, CAPTURE_UNSUPPORTED);
    if (stream.recorded) return spoil(stream, CAPTURE_ISOLATION);
    return put(stream, {[] {}, event, event->recorded});
}
Result cuEventSynchronize(Handle handle) {
    LOCKED_AND_WHOLE;
    auto found = events.find(handle);
    if (found == events.end()) return INVALID_HANDLE;
    Event &event = *found->second;
    if (event.captured) return spoil(*event.stream, CAPTURED_EVENT);
    const size_t before = done;
    while (event.reached < event.recorded) run_one(*event.stream);
    note(before);
    return broken;
}
Result cuEventQuery(Handle handle) {
    LOCKED_AND_WHOLE;
    auto found = events.find(handle);
    if (found == events.end()) return INVALID_HANDLE;
    Event &event = *found->second;
    if (event.captured) return spoil(*event.stream, CAPTURED_EVENT);
    if (event.reached == event.recorded) return SUCCESS;
    run_some(*event.stream);
    return broken != SUCCESS ? broken : NOT_READY;
}
Result cuEventElapsedTime(float *milliseconds, Handle first, Handle second) {
    LOCKED_AND_WHOLE;
    for (Handle handle : {first, second}) {
        auto found = events.find(handle);
        if (found == events.end() || found->second->recorded == 0) return INVALID_HANDLE;
        if (found->second->reached < found->second->recorded) return NOT_READY;
    }
    return *milliseconds = 1.0f, SUCCESS;
}
Result cuEventElapsedTime_v2(float *milliseconds, Handle first, Handle second) {
    return cuEventElapsedTime(milliseconds, first, second);
}

Result cuStreamIsCapturing(Handle handle, int *status) {
    LOCKED_AND_WHOLE;
    Stream &stream = of(handle);
    return *status = stream.recorded ? (stream.spoilt ? 2 : 1) : 0, SUCCESS;
}
Result cuStreamBeginCapture_v2(Handle handle, int) {
    LOCKED;
    if (Result refused = not_recorded(handle)) return refused;
    if (&of(handle) == &nobodys) return CAPTURE_UNSUPPORTED;
    if (setting("ANDON_EMULATED_GRAPHS", 1) == 0) return NOT_SUPPORTED;
    Stream &stream = of(handle);
    stream.recorded = std::make_shared<std::vector<Work>>();
    stream.recorder = std::this_thread::get_id();
    stream.spoilt = false;
    return SUCCESS;
}
Result cuStreamEndCapture(Handle handle, Handle *graph) {
    LOCKED_AND_WHOLE;
    *graph = nullptr;
    Stream &stream = of(handle);
    if (!stream.recorded) return CAPTURE_UNMATCHED;
    Recorded recorded = std::move(stream.recorded);
    stream.recorded = nullptr;
    if (stream.spoilt) return CAPTURE_INVALIDATED;
    *graph = new Recorded(std::move(recorded));
    return SUCCESS;
}
Result cuGraphInstantiateWithFlags(Handle *executable, Handle graph, unsigned long long) {
    LOCKED_AND_WHOLE;
    if (no_room_to("instantiate")) return OUT_OF_MEMORY;
    *executable = new Recorded(*static_cast<Recorded *>(graph));
    return SUCCESS;
}
Result cuGraphLaunch(Handle executable, Handle stream) {
    LOCKED;
    if (no_room_to("launch")) return OUT_OF_MEMORY;
    if (Result refused = not_recorded(stream)) return refused;
    return ask(stream, [recorded = *static_cast<Recorded *>(executable)] {
        for (const Work &work : *recorded) {
            if (broken == SUCCESS) work();
        }
    });
}
Result cuGraphUpload(Handle, Handle stream) {
    LOCKED;
    if (no_room_to("upload")) return OUT_OF_MEMORY;
    return not_recorded(stream);
}
Result cuGraphExecDestroy(Handle executable) { return delete static_cast<Recorded *>(executable), SUCCESS; }
Result cuGraphDestroy(Handle graph) { return delete static_cast<Recorded *>(graph), SUCCESS; }

} // extern "C"
