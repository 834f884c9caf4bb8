/* Eight threads add under a mutex, wait for each other at a barrier and are joined. */
#include <pthread.h>
#include <stdio.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t barrier;
static _Thread_local long own;
static long sum;

static void *add(void *unused)
{
    (void)unused;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 100000; i++) {
        own++;
        pthread_mutex_lock(&mutex);
        sum++;
        pthread_mutex_unlock(&mutex);
    }
    return own == 100000 ? NULL : &sum;
}

int main(void)
{
    pthread_t threads[8];
    pthread_barrier_init(&barrier, NULL, 8);
    for (int i = 0; i < 8; i++)
        if (pthread_create(&threads[i], NULL, add, NULL) != 0)
            return 1;
    for (int i = 0; i < 8; i++) {
        void *wrong;
        if (pthread_join(threads[i], &wrong) != 0 || wrong != NULL)
            return 2;
    }
    printf("sum %ld\n", sum);
    return 0;
}
