// The pod sandbox's process: holds the pod's namespaces, reaps orphans of shared pid namespaces, ends on a signal.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(int sig) { (void)sig; while (waitpid(-1, 0, WNOHANG) > 0) {} }
static void end(int sig) { (void)sig; _exit(0); }

int main(void) {
    signal(SIGCHLD, reap);
    signal(SIGINT, end);
    signal(SIGTERM, end);
    for (;;) pause();
}
